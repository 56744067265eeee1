{{- /*
The relay beside an engine, for the pods of engines. A chart of engines that has this one among its
dependencies takes the parts with their context, such as

  initContainers:
    - {{ include "warmpath.relay.container" .Subcharts.warmpath | indent 6 | trim }}

and everybody else takes the patch of them, or has them injected.
*/ -}}

{{- /* The annotations of a pod with a relay: routers look for one where they are. */ -}}
{{- define "warmpath.relay.annotations" -}}
warmpath.dev/relay: {{ .Values.relay.port | toString | quote }}
# Another configuration takes new pods.
checksum/warmpath-relay: {{ include "warmpath.relayConfig" . | sha256sum }}
{{- end -}}

{{- /*
A sidecar container of Kubernetes: an init container that goes on, is there before the engine, and ends after
it. It has no readiness probe, which would take an engine out of service that can answer, and no startup
probe, which the engine would wait for.
*/ -}}
{{- define "warmpath.relay.container" -}}
{{- $ip := ternary "[$(POD_IP)]" "$(POD_IP)" (hasPrefix "[" .Values.listenAddress) -}}
name: warmpath-relay
image: {{ include "warmpath.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
restartPolicy: Always
args: [relay, --config=/etc/warmpath/relay.yaml]
env:
  - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: WARMPATH_RELAY_ENDPOINT, value: "{{ $ip }}:{{ first .Values.engines.ports | int }}"}
ports:
  - {name: relay, containerPort: {{ .Values.relay.port | int }}}
  - {name: relay-admin, containerPort: {{ .Values.relay.adminPort | int }}}
livenessProbe:
  httpGet: {path: /healthz, port: relay-admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- with .Values.relay.resources }}
resources: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
  {{- include "warmpath.restricted" . | nindent 2 }}
volumeMounts:
  - {name: warmpath-relay, mountPath: /etc/warmpath, readOnly: true}
  - {name: warmpath-seed, mountPath: /etc/warmpath-seed, readOnly: true}
  {{- if .Values.relay.tokens.existingSecret }}
  - {name: warmpath-relay-tokens, mountPath: /etc/warmpath-relay-tokens, readOnly: true}
  {{- end }}
{{- end -}}

{{- /*
The volumes of a relay, as a YAML list. The engine's pod need have no fsGroup, so that everybody may read the
files, and only the relay mounts them.
*/ -}}
{{- define "warmpath.relay.volumes" -}}
- name: warmpath-relay
  configMap:
    name: {{ include "warmpath.fullname" . }}-relay
    items: [{key: relay.yaml, path: relay.yaml}]
- name: warmpath-seed
  secret:
    secretName: {{ .Values.seed.existingSecret | quote }}
    defaultMode: 0444
    items: [{key: {{ .Values.seed.key | quote }}, path: seed}]
{{- if .Values.relay.tokens.existingSecret }}
- name: warmpath-relay-tokens
  secret:
    secretName: {{ .Values.relay.tokens.existingSecret | quote }}
    defaultMode: 0444
    items: [{key: {{ .Values.relay.tokens.key | quote }}, path: tokens}]
{{- end }}
{{- end -}}

{{- /* A strategic merge patch that puts a relay into the pods of a Deployment, a StatefulSet or a DaemonSet. */ -}}
{{- define "warmpath.relay.patch" -}}
spec:
  template:
    metadata:
      annotations: {{- include "warmpath.relay.annotations" . | nindent 8 }}
    spec:
      {{- with .Values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . | quote }}
        {{- end }}
      {{- end }}
      initContainers:
        - {{ include "warmpath.relay.container" . | indent 10 | trim }}
      volumes: {{- include "warmpath.relay.volumes" . | nindent 8 }}
{{- end -}}

{{- /*
A value as CEL: takes value, and type, the name of its type in CEL (Kubernetes docs, Mutating Admission
Policy), whose fields have types by their paths. Text, numbers and lists of them are the same in JSON, and so
are maps with keys of their own.
*/ -}}
{{- define "warmpath.cel" -}}
{{- $type := .type -}}
{{- if kindIs "map" .value -}}
{{- if has (last (splitList "." $type)) (list "limits" "requests") -}}
{{- .value | toJson -}}
{{- else -}}
{{- $fields := list -}}
{{- range $k, $v := .value -}}
{{- $fields = append $fields (printf "%s: %s" $k (include "warmpath.cel" (dict "value" $v "type" (printf "%s.%s" $type $k)))) -}}
{{- end -}}
{{- printf "%s{%s}" $type (join ", " $fields) -}}
{{- end -}}
{{- else if kindIs "slice" .value -}}
{{- $items := list -}}
{{- range .value -}}{{- $items = append $items (include "warmpath.cel" (dict "value" . "type" $type)) -}}{{- end -}}
{{- printf "[%s]" (join ", " $items) -}}
{{- else -}}
{{- .value | toJson -}}
{{- end -}}
{{- end -}}

{{- /*
The patch as CEL that gives a JSON patch of one pod, whose lists and annotations may be there or not. The relay
goes before other init containers, which may take long.
*/ -}}
{{- define "warmpath.relay.jsonPatch" -}}
{{- $template := (include "warmpath.relay.patch" . | fromYaml).spec.template -}}
{{- $parts := list -}}
{{- range $field, $items := $template.spec -}}
{{- $type := printf "Object.spec.%s" $field -}}
{{- $adds := list -}}
{{- range $items -}}
{{- $adds = append $adds (printf "JSONPatch{op: \"add\", path: \"/spec/%s/%s\", value: %s}" $field (ternary "0" "-" (eq $field "initContainers")) (include "warmpath.cel" (dict "value" . "type" $type))) -}}
{{- end -}}
{{- $parts = append $parts (printf "(has(object.spec.%s) ? [] : [JSONPatch{op: \"add\", path: \"/spec/%s\", value: []}]) + [%s]" $field $field (join ", " $adds)) -}}
{{- end -}}
{{- $adds := list -}}
{{- range $key, $value := $template.metadata.annotations -}}
{{- $adds = append $adds (printf "JSONPatch{op: \"add\", path: \"/metadata/annotations/\" + jsonpatch.escapeKey(%s), value: %s}" ($key | toJson) ($value | toJson)) -}}
{{- end -}}
{{- $parts = append $parts (printf "(has(object.metadata.annotations) ? [] : [JSONPatch{op: \"add\", path: \"/metadata/annotations\", value: {}}]) + [%s]" (join ", " $adds)) -}}
{{- join " + " $parts -}}
{{- end -}}
