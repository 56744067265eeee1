package pool

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// What pods say of themselves, in labels or annotations: an annotation counts
// before a label, and ours before AIBrix's (AIBrix documentation, "Labels and
// annotations").
const (
	saysModels      = "warmpath.dev/models"
	saysAdapters    = "warmpath.dev/adapters"
	saysPort        = "warmpath.dev/port"
	saysMetricsPort = "warmpath.dev/metrics-port"
	saysEngine      = "warmpath.dev/engine"
	saysEvents      = "warmpath.dev/events"
	saysEventsPort  = "warmpath.dev/events-port"
	saysReplayPort  = "warmpath.dev/replay-port"
	saysRanks       = "warmpath.dev/ranks"
	saysTopic       = "warmpath.dev/topic"
	saysRelay       = "warmpath.dev/relay"
	saysDrain       = "warmpath.dev/drain"

	aibrixName       = "model.aibrix.ai/name"
	aibrixPort       = "model.aibrix.ai/port"
	aibrixMetricPort = "model.aibrix.ai/metric-port"
	aibrixEvents     = "model.aibrix.ai/kv-events-enabled"
	aibrixLora       = "model.aibrix.ai/lora-id"
	aibrixEngine     = "model.aibrix.ai/engine"
)

// The ranks of what lists a pod: the pod itself, by label or InferencePool,
// knows more than a slice.
const (
	rankPod = iota
	rankPoolPod
	rankSlice
)

// teller reads what a pod says, and collects what is wrong with it.
type teller struct {
	pod  *corev1.Pod
	errs []error
}

// wrong takes note of a fault, once.
func (t *teller) wrong(err error) {
	for _, e := range t.errs {
		if e.Error() == err.Error() {
			return
		}
	}
	t.errs = append(t.errs, err)
}

// said returns the first value of those names.
func (t *teller) said(names ...string) (name, value string) {
	for _, n := range names {
		if v, ok := t.pod.Annotations[n]; ok {
			return n, strings.TrimSpace(v)
		}
		if v, ok := t.pod.Labels[n]; ok {
			return n, strings.TrimSpace(v)
		}
	}
	return "", ""
}

func (t *teller) number(least, most int, names ...string) int {
	name, value := t.said(names...)
	if value == "" {
		return 0
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > most {
		t.wrong(fmt.Errorf("%s: %q is not a number from %d to %d; it is ignored", name, value, least, most))
		return 0
	}
	return n
}

func (t *teller) port(names ...string) int { return t.number(1, 65535, names...) }

func (t *teller) list(names ...string) []string {
	_, value := t.said(names...)
	var out []string
	for word := range strings.SplitSeq(value, ",") {
		if word = strings.TrimSpace(word); word != "" {
			out = append(out, word)
		}
	}
	return out
}

// verdict is yes, no, or nothing said.
type verdict uint8

const (
	silent verdict = iota
	yes
	no
)

func (t *teller) verdict(names ...string) verdict {
	name, value := t.said(names...)
	switch strings.ToLower(value) {
	case "":
		return silent
	case "true", "yes", "on", "1", EventsAuto:
		return yes
	case "false", "no", "off", "0":
		return no
	}
	t.wrong(fmt.Errorf("%s: %q is neither true nor false; it is ignored", name, value))
	return silent
}

// podListings returns the endpoints in a pod: one for each of ports, or, if
// there are none, at the port that the pod names. A pod that does not run or
// has no address has none; one that is not ready or is terminating has them
// withheld, because its engine's cache is worth following all the same. The
// error is about what the pod says and what is ignored of it.
func (c KubernetesConfig) podListings(pod *corev1.Pod, ports []int, rank int) ([]Listing, error) {
	if pod.Status.Phase != corev1.PodRunning || net.ParseIP(pod.Status.PodIP) == nil {
		return nil, nil
	}
	t := &teller{pod: pod}
	if len(ports) == 0 {
		ports = []int{c.Port}
		if n := t.port(saysPort, aibrixPort); n > 0 {
			ports[0] = n
		}
	}
	var out []Listing
	for i, port := range ports {
		l := Listing{
			Spec: Spec{
				Name:    fmt.Sprintf("%s/%s:%d", pod.Namespace, pod.Name, port),
				Address: hostPort(pod.Status.PodIP, port),
				Models:  t.list(saysModels, aibrixName), Adapters: t.list(saysAdapters),
				Labels: pod.Labels, Annotations: ourAnnotations(pod.Annotations),
			},
			Process: fmt.Sprintf("%s/%d", pod.UID, restarts(pod, port)), Withheld: withheld(t),
			LearnModels: true, rank: rank,
		}
		if _, id := t.said(aibrixLora); id != "" {
			// AIBrix's is a number that means nothing outside of the engine; a name
			// is an adapter's.
			if _, err := strconv.Atoi(id); err != nil {
				l.Adapters = append(l.Adapters, id)
			}
		}
		l.Metrics = t.metrics(pod.Status.PodIP, port)
		c.publishes(t, &l, i, len(ports))
		l.Relay = t.relay(pod.Status.PodIP, c.RelayPort, i)
		out = append(out, l)
	}
	return out, errors.Join(t.errs...)
}

func hostPort(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }

func withheld(t *teller) string {
	switch {
	case t.pod.DeletionTimestamp != nil:
		return "its pod is terminating"
	case t.verdict(saysDrain) == yes:
		return "its pod is drained by " + saysDrain
	case !podReady(t.pod):
		return "its pod is not ready"
	}
	return ""
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// restarts returns how often the container with a port was started again, or,
// if none declares it, all of the pod's containers.
func restarts(pod *corev1.Pod, port int) int32 {
	all := int32(0)
	for _, s := range pod.Status.ContainerStatuses {
		all += s.RestartCount
	}
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if int(p.ContainerPort) != port {
				continue
			}
			for _, s := range pod.Status.ContainerStatuses {
				if s.Name == c.Name {
					return s.RestartCount
				}
			}
		}
	}
	return all
}

// metrics returns the URL of the engine's metrics where it is not the usual
// one.
func (t *teller) metrics(ip string, port int) string {
	path := "/metrics"
	if _, engine := t.said(saysEngine, aibrixEngine); strings.HasPrefix(strings.ToLower(engine), "trt") || strings.EqualFold(engine, "tensorrt-llm") {
		path = "/prometheus/metrics"
	}
	at := t.port(saysMetricsPort, aibrixMetricPort)
	if at == 0 || at == port {
		if path == "/metrics" {
			return ""
		}
		at = port
	}
	return "http://" + hostPort(ip, at) + path
}

// relay returns where the relay of the endpoint at the i-th port is: the
// pod says a port, none, or that it reports by itself.
func (t *teller) relay(ip string, usual, i int) string {
	switch _, value := t.said(saysRelay); value {
	case RelayPush:
		return RelayPush
	case "none":
		return ""
	}
	port := cmp.Or(t.port(saysRelay), usual)
	if port == 0 {
		return ""
	}
	return hostPort(ip, port+i)
}

// publishes says where the endpoint at the i-th of n ports publishes. Ranks
// behind ports of their own publish at ports of their own, as those behind one
// port do.
func (c KubernetesConfig) publishes(t *teller, l *Listing, i, n int) {
	ip := t.pod.Status.PodIP
	enabled := t.verdict(saysEvents, aibrixEvents)
	if enabled == no || enabled == silent && c.Events == eventsLabeled && t.port(saysEventsPort) == 0 {
		return
	}
	topic := c.Topic
	if name, own := t.said(saysTopic); name != "" {
		topic = own
	} else if enabled != yes {
		topic = ""
	}
	replay := t.port(saysReplayPort)
	ranks := t.number(1, maxRanks, saysRanks)
	if topic != "" {
		f := podFacts{t.pod.Name, t.pod.Namespace, ip, ""}
		if len(l.Models) > 0 {
			f.model = l.Models[0]
		}
		var err error
		if l.Topic, err = expandTopic(topic, f); err != nil {
			t.wrong(fmt.Errorf("%s: %w", saysTopic, err))
		}
		if replay > 0 {
			l.Replay = "tcp://" + hostPort(ip, replay+i)
		}
		return
	}
	if port := t.port(saysEventsPort); port > 0 {
		l.Events, l.Ranks = "tcp://"+hostPort(ip, port+i), ranks
		if replay > 0 {
			l.Replay = "tcp://" + hostPort(ip, replay+i)
		}
		return
	}
	l.Events = EventsAuto
	if enabled != yes {
		return
	}
	guess := Spec{Events: "tcp://" + hostPort(ip, c.EventsPort+i), Ranks: ranks}
	if replay == 0 {
		replay = c.ReplayPort
	}
	if replay > 0 {
		guess.Replay = "tcp://" + hostPort(ip, replay+i)
	}
	l.guess = guess.sources()
}

// ourAnnotations returns those annotations that mean something here; the
// others of a pod can be long and change often.
func ourAnnotations(all map[string]string) map[string]string {
	var out map[string]string
	for k, v := range all {
		if strings.HasPrefix(k, "warmpath.dev/") || strings.HasPrefix(k, "model.aibrix.ai/") {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}
