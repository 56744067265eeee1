{{- define "warmpath.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "warmpath.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "warmpath.labels" -}}
{{ include "warmpath.selectorLabels" . }}
app.kubernetes.io/component: router
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{- define "warmpath.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "warmpath.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "warmpath.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Whether an Envoy Gateway is attached by its own policies. */ -}}
{{- define "warmpath.policies" -}}
{{- if has .Values.attach (list "envoy-gateway" "original-dst") }}true{{ end -}}
{{- end -}}

{{- /* Whether there is a Gateway. */ -}}
{{- define "warmpath.gateway" -}}
{{- if has .Values.attach (list "envoy-gateway" "original-dst" "inference-pool") }}true{{ end -}}
{{- end -}}

{{- define "warmpath.gatewayNamespace" -}}
{{- .Values.gateway.namespace | default .Release.Namespace -}}
{{- end -}}

{{- define "warmpath.routeName" -}}
{{- if .Values.route.create -}}
{{- .Values.route.name | default (include "warmpath.fullname" .) -}}
{{- else -}}
{{- .Values.route.name -}}
{{- end -}}
{{- end -}}

{{- define "warmpath.enginesService" -}}
{{- if .Values.engines.service.create -}}
{{- .Values.engines.service.name | default (printf "%s-engines" (include "warmpath.fullname" .)) -}}
{{- else -}}
{{- .Values.engines.service.name -}}
{{- end -}}
{{- end -}}

{{- /* What the restricted Pod Security Standard asks of a container. */ -}}
{{- define "warmpath.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* The files that the configuration names, and itself. */ -}}
{{- define "warmpath.mounts" -}}
- {name: config, mountPath: /etc/warmpath, readOnly: true}
{{- if .Values.tls.existingSecret }}
- {name: tls, mountPath: /etc/warmpath-tls, readOnly: true}
{{- end }}
{{- if .Values.tls.clientCASecret }}
- {name: client-ca, mountPath: /etc/warmpath-client-ca, readOnly: true}
{{- end }}
{{- if .Values.seed.existingSecret }}
- {name: seed, mountPath: /etc/warmpath-seed, readOnly: true}
{{- end }}
{{- if include "warmpath.relayToken" . }}
- {name: relay-token, mountPath: /etc/warmpath-relay-token, readOnly: true}
{{- end }}
{{- if .Values.peers.enabled }}
- {name: peers, mountPath: /etc/warmpath-peers, readOnly: true}
{{- end }}
{{- end -}}

{{- define "warmpath.volumes" -}}
- name: config
  configMap: {name: {{ include "warmpath.fullname" . | quote }}}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- with .Values.tls.clientCASecret }}
- name: client-ca
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- if .Values.seed.existingSecret }}
- name: seed
  secret:
    secretName: {{ .Values.seed.existingSecret | quote }}
    defaultMode: 0440
    items: [{key: {{ .Values.seed.key | quote }}, path: seed}]
{{- end }}
{{- if include "warmpath.relayToken" . }}
- name: relay-token
  secret:
    secretName: {{ .Values.relay.tokens.existingSecret | quote }}
    defaultMode: 0440
    items: [{key: {{ .Values.relay.tokens.routerKey | quote }}, path: token}]
{{- end }}
{{- if .Values.peers.enabled }}
- name: peers
  secret:
    secretName: {{ .Values.peers.tokens.existingSecret | quote }}
    defaultMode: 0440
    items: [{key: {{ .Values.peers.tokens.key | quote }}, path: tokens}, {key: {{ .Values.peers.tokens.routerKey | quote }}, path: token}]
{{- end }}
{{- end -}}

{{- /* Whether the router shows relays a token. */ -}}
{{- define "warmpath.relayToken" -}}
{{- if and .Values.relay.enabled .Values.relay.tokens.existingSecret }}true{{ end -}}
{{- end -}}

{{- define "warmpath.peersService" -}}
{{ include "warmpath.fullname" . }}-peers
{{- end -}}

{{- /* What the router is told of relays and of other routers. */ -}}
{{- define "warmpath.cachestate" -}}
{{- $c := dict -}}
{{- if .Values.peers.enabled -}}
{{- $c = dict
      "listen" (printf "%s:%d" .Values.listenAddress (int .Values.peers.port))
      "tokens_file" "/etc/warmpath-peers/tokens"
      "peers_token_file" "/etc/warmpath-peers/token"
      "peers" (list (printf "%s.%s.svc:%d" (include "warmpath.peersService" .) .Release.Namespace (int .Values.peers.port))) -}}
{{- end -}}
{{- if include "warmpath.relayToken" . -}}{{- $_ := set $c "token_file" "/etc/warmpath-relay-token/token" -}}{{- end -}}
{{- $c | toYaml -}}
{{- end -}}

{{- /* Labels of the pod of helm test. They are not those of a router. */ -}}
{{- define "warmpath.testLabels" -}}
app.kubernetes.io/name: {{ printf "%s-test" (default .Chart.Name .Values.nameOverride) | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "warmpath.tlsHostname" -}}
{{- .Values.tls.hostname | default (printf "%s.%s.svc" (include "warmpath.fullname" .) .Release.Namespace) -}}
{{- end -}}

{{- /* Namespaces of the engines, as YAML. */ -}}
{{- define "warmpath.engineNamespaces" -}}
{{- .Values.engines.namespaces | default (list .Release.Namespace) | uniq | sortAlpha | toYaml -}}
{{- end -}}

{{- /*
The request headers that steer a request. A client's copies are removed before
Envoy routes by them.
*/ -}}
{{- define "warmpath.routingHeaders" -}}
- x-gateway-destination-endpoint
- x-gateway-destination-endpoint-served
- target-pod
- x-data-parallel-rank
- x-warmpath-endpoint
- x-warmpath-strategy
- x-warmpath-matched-tokens
- x-warmpath-reason
- x-warmpath-tokens
{{- end -}}

{{- /* How the router finds engines. */ -}}
{{- define "warmpath.discovery" -}}
{{- if eq .Values.attach "inference-pool" }}inference-pool{{ else }}{{ .Values.engines.discovery }}{{ end -}}
{{- end -}}

{{- /* Namespaces that discovery looks at, as YAML. */ -}}
{{- define "warmpath.watchedNamespaces" -}}
{{- if eq (include "warmpath.discovery" .) "pods" -}}
{{- include "warmpath.engineNamespaces" . -}}
{{- else -}}
{{- list .Release.Namespace | toYaml -}}
{{- end -}}
{{- end -}}

{{- /* What Kubernetes discovery is told. */ -}}
{{- define "warmpath.kubernetes" -}}
{{- $d := include "warmpath.discovery" . -}}
{{- if eq $d "pods" -}}
{{- $terms := list -}}
{{- range $k, $v := .Values.engines.selector -}}{{- $terms = append $terms (printf "%s=%s" $k $v) -}}{{- end -}}
namespaces: {{ include "warmpath.engineNamespaces" . | nindent 2 }}
pod_selector: {{ join "," $terms | quote }}
{{- else if eq $d "service" -}}
namespaces: [{{ .Release.Namespace | quote }}]
services:
{{- range .Values.engines.ports }}
  - {{ printf "%s:%d" (include "warmpath.enginesService" $) (int .) | quote }}
{{- end }}
{{- else -}}
namespaces: [{{ .Release.Namespace | quote }}]
inference_pools: [{{ include "warmpath.fullname" . | quote }}]
{{- end }}
port: {{ first .Values.engines.ports | int }}
events_port: {{ .Values.engines.events.port | int }}
replay_port: {{ .Values.engines.events.replayPort | int }}
{{- /* Pods say it themselves, so that those without a relay are followed at once. */ -}}
{{- if and .Values.relay.enabled (eq $d "service") }}
relay_port: {{ .Values.relay.port | int }}
{{- end }}
{{- end -}}

{{- /* The configuration file of the relays. */ -}}
{{- define "warmpath.relayConfig" -}}
{{- $e := .Values.engines.events -}}
{{- $engine := dict "name" "engine" "address" (printf "127.0.0.1:%d" (first .Values.engines.ports | int)) "events" (printf "tcp://127.0.0.1:%d" (int $e.port)) "ranks" (int $e.ranks) -}}
{{- if $e.replayPort -}}{{- $_ := set $engine "replay" (printf "tcp://127.0.0.1:%d" (int $e.replayPort)) -}}{{- end -}}
{{- with .Values.relay.models -}}{{- $_ := set $engine "models" . -}}{{- end -}}
{{- $relay := dict "listen" (printf "%s:%d" .Values.listenAddress (int .Values.relay.port)) -}}
{{- if .Values.relay.tokens.existingSecret -}}{{- $_ := set $relay "tokens_file" "/etc/warmpath-relay-tokens/tokens" -}}{{- end -}}
{{- dict
      "index" (dict "seed_file" "/etc/warmpath-seed/seed")
      "relay" $relay
      "admin" (dict "listen" (printf "%s:%d" .Values.listenAddress (int .Values.relay.adminPort)))
      "pool" (dict "health" (dict "path" .Values.engines.healthPath) "static" (dict "endpoints" (list $engine)))
      "log" (dict "format" "json") | toYaml -}}
{{- end -}}

{{- /*
The configuration file, once the values go together. What the chart knows from other values is put over
.Values.config. Its schema does not allow those keys, but for those of cachestate, with which warmpath.validate finds fault
where the chart sets them.
*/ -}}
{{- define "warmpath.config" -}}
{{- include "warmpath.validate" . -}}
{{- $extproc := dict "listen" (printf "%s:9002" .Values.listenAddress) "max_body_bytes" (.Values.maxBodyBytes | int64) -}}
{{- with .Values.tls.existingSecret -}}
{{- $_ := set $extproc "tls" (dict "cert" "/etc/warmpath-tls/tls.crt" "key" "/etc/warmpath-tls/tls.key") -}}
{{- end -}}
{{- if and .Values.tls.existingSecret .Values.tls.clientCASecret -}}
{{- $_ := set $extproc.tls "client_ca" "/etc/warmpath-client-ca/ca.crt" -}}
{{- end -}}
{{- if eq .Values.attach "original-dst" -}}
{{- $_ := set $extproc "clear_route_cache" true -}}
{{- end -}}
{{- $pool := dict "health" (dict "path" .Values.engines.healthPath) -}}
{{- if ne (include "warmpath.discovery" .) "none" -}}
{{- $_ := set $pool "kubernetes" (include "warmpath.kubernetes" . | fromYaml) -}}
{{- end -}}
{{- $own := dict "extproc" $extproc "pool" $pool "admin" (dict "listen" (printf "%s:9090" .Values.listenAddress)) -}}
{{- if include "warmpath.policies" . -}}
{{- $_ := set $own "envoy" (dict "message_timeout" .Values.policy.messageTimeout) -}}
{{- $_ := set $own "routing" (dict "fallbacks" (.Values.policy.retries | int)) -}}
{{- end -}}
{{- if eq .Values.attach "standalone" -}}
{{- $names := list -}}
{{- range .Values.engines.ports -}}
{{- $names = append $names (printf "%s.%s.svc:%d" (include "warmpath.enginesService" $) $.Release.Namespace (int .)) -}}
{{- end -}}
{{- $_ := set $own "envoy" (dict "listen" (printf "%s:8080" .Values.listenAddress) "admin" "127.0.0.1:9901" "engines" $names) -}}
{{- end -}}
{{- with .Values.seed.existingSecret -}}
{{- $_ := set $own "index" (dict "seed_file" "/etc/warmpath-seed/seed") -}}
{{- end -}}
{{- with include "warmpath.cachestate" . | fromYaml -}}
{{- $_ := set $own "cachestate" . -}}
{{- end -}}
{{- mergeOverwrite (deepCopy .Values.config) $own | toYaml -}}
{{- end -}}

{{- /* Ports of KV events and of their replay, of every rank, and of relays, as a YAML list. */ -}}
{{- define "warmpath.eventPorts" -}}
{{- $ports := list -}}
{{- $e := .Values.engines.events -}}
{{- range $rank := until (int $e.ranks) -}}
{{- $ports = append $ports (add $e.port $rank | int) -}}
{{- if $e.replayPort -}}{{- $ports = append $ports (add $e.replayPort $rank | int) -}}{{- end -}}
{{- end -}}
{{- if ne (len $ports) (len ($ports | uniq)) -}}
{{- fail (printf "engines.events.ranks: %d ranks at port %d and up overlap replay at port %d and up; move engines.events.replayPort" (int $e.ranks) (int $e.port) (int $e.replayPort)) -}}
{{- end -}}
{{- if .Values.relay.enabled -}}
{{- $own := $ports -}}
{{- range .Values.engines.ports -}}{{- $own = append $own (int .) -}}{{- end -}}
{{- if has (int .Values.relay.port) $own -}}
{{- fail (printf "relay.port: %d is one of the engines' own ports; use another" (int .Values.relay.port)) -}}
{{- end -}}
{{- if has (int .Values.relay.adminPort) (append $own (int .Values.relay.port)) -}}
{{- fail (printf "relay.adminPort: %d is relay.port or one of the engines' own ports; use another" (int .Values.relay.adminPort)) -}}
{{- end -}}
{{- $ports = append $ports (int .Values.relay.port) -}}
{{- end -}}
{{- $last := add (max $e.port $e.replayPort) $e.ranks -1 | int -}}
{{- if gt $last 65535 -}}
{{- fail (printf "engines.events.ranks: %d ranks reach port %d; ports end at 65535" (int $e.ranks) $last) -}}
{{- end -}}
{{- $ports | toYaml -}}
{{- end -}}

{{- /* The ranges of ports without those of the list, as a YAML list of {from, to}. */ -}}
{{- define "warmpath.otherPorts" -}}
{{- $padded := list -}}
{{- range . -}}{{- $padded = append $padded (printf "%05d" (int .)) -}}{{- end -}}
{{- $from := 1 -}}
{{- range $padded | uniq | sortAlpha -}}
{{- $port := . | trimPrefix "0" | trimPrefix "0" | trimPrefix "0" | trimPrefix "0" | int -}}
{{- if gt $port $from }}
- {from: {{ $from }}, to: {{ sub $port 1 }}}
{{- end -}}
{{- $from = add $port 1 -}}
{{- end -}}
{{- if le (int $from) 65535 }}
- {from: {{ $from }}, to: 65535}
{{- end -}}
{{- end -}}

{{- /* Values that are each right and do not go together, all of them at once. */ -}}
{{- define "warmpath.validate" -}}
{{- $faults := list -}}
{{- $v := .Values -}}
{{- $namespaces := $v.engines.namespaces | default (list .Release.Namespace) -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- $faults = append $faults (printf "autoscaling.minReplicas: %d is above autoscaling.maxReplicas (%d)" (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (has $v.attach (list "envoy-gateway" "standalone")) (eq $v.engines.discovery "pods") (ne ($namespaces | join ",") .Release.Namespace) -}}
{{- $faults = append $faults (printf "engines.namespaces: %s, but with attach %s Envoy knows engines in the release's namespace (%s) alone; install there, or use attach original-dst" ($namespaces | join ", ") $v.attach .Release.Namespace) -}}
{{- end -}}
{{- if and (ne $v.engines.discovery "pods") $v.engines.namespaces -}}
{{- $faults = append $faults (printf "engines.namespaces: set, but engines.discovery %s looks at the release's namespace alone; remove it" $v.engines.discovery) -}}
{{- end -}}
{{- if and (eq (include "warmpath.discovery" .) "pods") (gt (len $v.engines.ports) 1) -}}
{{- $faults = append $faults "engines.ports: several, but engines.discovery pods takes one port of each pod; set engines.discovery: service" -}}
{{- end -}}
{{- if and (eq (include "warmpath.discovery" .) "none") (not (dig "pool" "static" "endpoints" "" $v.config)) (not (dig "pool" "file" "path" "" $v.config)) -}}
{{- $faults = append $faults "engines.discovery: none, so say where engines are in config.pool.static.endpoints or config.pool.file.path" -}}
{{- end -}}
{{- if and (not $v.engines.service.create) (not $v.engines.service.name) -}}
{{- $faults = append $faults "engines.service.name: empty, with engines.service.create false; name the Service over all engine pods" -}}
{{- end -}}
{{- if and (not $v.route.create) (not $v.route.name) (include "warmpath.gateway" .) -}}
{{- $faults = append $faults "route.name: empty, with route.create false; name the HTTPRoute to attach to" -}}
{{- end -}}
{{- if and (eq $v.attach "original-dst") (not $v.gateway.listener) -}}
{{- $faults = append $faults "gateway.listener: empty, and original-dst changes the routes of one listener; name it" -}}
{{- end -}}
{{- if and (eq $v.attach "inference-pool") (not $v.tls.existingSecret) -}}
{{- $faults = append $faults "tls.existingSecret: empty, and gateways ask the endpoint picker of an InferencePool over TLS; name a Secret of type kubernetes.io/tls" -}}
{{- end -}}
{{- if and (eq $v.attach "standalone") $v.tls.existingSecret -}}
{{- $faults = append $faults "tls.existingSecret: set, but with attach standalone Envoy asks the router inside of the pod; remove it" -}}
{{- end -}}
{{- if and (include "warmpath.policies" .) $v.tls.existingSecret (not $v.tls.caConfigMap) -}}
{{- $faults = append $faults "tls.caConfigMap: empty, with tls.existingSecret; name the ConfigMap with ca.crt, the authority that signed the certificate" -}}
{{- end -}}
{{- if and $v.tls.clientCASecret (not $v.tls.existingSecret) -}}
{{- $faults = append $faults "tls.clientCASecret: set without tls.existingSecret; the router needs a certificate to ask for one" -}}
{{- end -}}
{{- if and $v.relay.enabled (not $v.seed.existingSecret) -}}
{{- $faults = append $faults "seed.existingSecret: empty, with relay.enabled; relays and routers understand each other's hashes only with the same seed: name a Secret with it" -}}
{{- end -}}
{{- if and (include "warmpath.relayToken" .) (dig "cachestate" "token_file" "" $v.config) -}}
{{- $faults = append $faults "config.cachestate.token_file: set, but relay.tokens sets it; remove one of them" -}}
{{- end -}}
{{- if $v.peers.enabled -}}
{{- if not $v.seed.existingSecret -}}
{{- $faults = append $faults "seed.existingSecret: empty, with peers.enabled; routers understand each other's hashes only with the same seed: name a Secret with it" -}}
{{- end -}}
{{- if not $v.peers.tokens.existingSecret -}}
{{- $faults = append $faults "peers.tokens.existingSecret: empty, with peers.enabled, so that nothing says which routers are told; name a Secret with the keys tokens (lines read TOKEN) and token" -}}
{{- else if and (include "warmpath.relayToken" .) (eq $v.peers.tokens.existingSecret $v.relay.tokens.existingSecret) (or (eq $v.peers.tokens.key $v.relay.tokens.key) (eq $v.peers.tokens.routerKey $v.relay.tokens.routerKey)) -}}
{{- $faults = append $faults (printf "peers.tokens: of Secret %s as relay.tokens is, with the same key or routerKey, so that engine pods, which have or are shown the relays' tokens, could read what routers tell each other; name another Secret" $v.peers.tokens.existingSecret) -}}
{{- end -}}
{{- range $key := list "listen" "peers" "tokens_file" "peers_token_file" -}}
{{- if dig "cachestate" $key "" $v.config -}}
{{- $faults = append $faults (printf "config.cachestate.%s: set, but peers.enabled sets it; remove one of them" $key) -}}
{{- end -}}
{{- end -}}
{{- if has (int $v.peers.port) (list 9002 9090 8080 9901) -}}
{{- $faults = append $faults (printf "peers.port: %d is one of the router's own ports; use another" (int $v.peers.port)) -}}
{{- end -}}
{{- end -}}
{{- if and $v.relay.enabled $v.relay.inject (semverCompare "<1.36.0-0" .Capabilities.KubeVersion.Version) -}}
{{- $faults = append $faults (printf "relay.inject: true, and MutatingAdmissionPolicies, which do it, are in Kubernetes from 1.36 on, and this is %s: set it to false and take the patch" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and $v.relay.enabled (gt (len $v.engines.ports) 1) -}}
{{- $faults = append $faults "engines.ports: several, with relay.enabled; a relay stands beside one engine: set relay.enabled to false" -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n%s" (join "\n" $faults)) -}}
{{- end -}}
{{- end -}}
