package pool

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// says puts labels, or with a leading @ annotations, on a pod.
func says(pairs ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for i := 0; i < len(pairs); i += 2 {
			to := &p.Labels
			name, annotation := strings.CutPrefix(pairs[i], "@")
			if annotation {
				to = &p.Annotations
			}
			if *to == nil {
				*to = map[string]string{}
			}
			(*to)[name] = pairs[i+1]
		}
	}
}

func TestPodListings(t *testing.T) {
	base := func(change ...func(*Listing)) Listing {
		l := Listing{
			Spec:    Spec{Name: "ns/p:8000", Address: "10.0.0.1:8000", Events: EventsAuto, Labels: map[string]string{"app": "vllm"}},
			Process: "uid-1/0", LearnModels: true,
		}
		for _, c := range change {
			c(&l)
		}
		return l
	}
	guess := []eventSource{{0, "tcp://10.0.0.1:5557", "tcp://10.0.0.1:5558"}}
	for _, tt := range []struct {
		name   string
		config func(*KubernetesConfig)
		pod    func(*corev1.Pod)
		ports  []int
		want   []Listing
		err    string
	}{
		{name: "says nothing", want: []Listing{base()}},
		{name: "pending", pod: func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }},
		{name: "no address", pod: func(p *corev1.Pod) { p.Status.PodIP = "" }},
		{name: "succeeded", pod: func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }},
		{name: "IPv6", pod: func(p *corev1.Pod) { p.Status.PodIP = "fd00::1" }, want: []Listing{base(func(l *Listing) { l.Address = "[fd00::1]:8000" })}},
		{name: "no conditions yet", pod: func(p *corev1.Pod) { p.Status.Conditions = nil }, want: []Listing{base(func(l *Listing) { l.Withheld = "its pod is not ready" })}},
		{name: "drained", pod: says("@warmpath.dev/drain", "true"), want: []Listing{base(func(l *Listing) {
			l.Withheld = "its pod is drained by warmpath.dev/drain"
			l.Annotations = map[string]string{"warmpath.dev/drain": "true"}
		})}},
		{name: "relay", pod: says("@warmpath.dev/relay", "5561"), config: func(c *KubernetesConfig) { c.RelayPort = 5560 }, want: []Listing{base(func(l *Listing) {
			l.Relay, l.Annotations = "10.0.0.1:5561", map[string]string{"warmpath.dev/relay": "5561"}
		})}},
		{name: "relay where they usually are", config: func(c *KubernetesConfig) { c.RelayPort = 5560 }, want: []Listing{base(func(l *Listing) { l.Relay = "10.0.0.1:5560" })}},
		{name: "relay that reports", pod: says("@warmpath.dev/relay", "push"), want: []Listing{base(func(l *Listing) {
			l.Relay, l.Annotations = "push", map[string]string{"warmpath.dev/relay": "push"}
		})}},
		{name: "no relay", pod: says("@warmpath.dev/relay", "none"), config: func(c *KubernetesConfig) { c.RelayPort = 5560 }, want: []Listing{base(func(l *Listing) {
			l.Annotations = map[string]string{"warmpath.dev/relay": "none"}
		})}},
		{
			name: "AIBrix", pod: says("model.aibrix.ai/name", "llama", "model.aibrix.ai/port", "9000", "model.aibrix.ai/metric-port", "9100",
				"model.aibrix.ai/kv-events-enabled", "true", "model.aibrix.ai/lora-id", "7", "@model.aibrix.ai/config", "{}", "@other", "x"),
			want: []Listing{base(func(l *Listing) {
				l.Name, l.Address, l.Models = "ns/p:9000", "10.0.0.1:9000", []string{"llama"}
				l.Metrics, l.guess = "http://10.0.0.1:9100/metrics", guess
				l.Annotations = map[string]string{"model.aibrix.ai/config": "{}"}
				l.Labels = map[string]string{
					"app": "vllm", "model.aibrix.ai/name": "llama", "model.aibrix.ai/port": "9000", "model.aibrix.ai/metric-port": "9100",
					"model.aibrix.ai/kv-events-enabled": "true", "model.aibrix.ai/lora-id": "7",
				}
			})},
		},
		{name: "events off", pod: says("@model.aibrix.ai/kv-events-enabled", "false"), want: []Listing{base(func(l *Listing) {
			l.Events, l.Annotations = "", map[string]string{"model.aibrix.ai/kv-events-enabled": "false"}
		})}},
		{name: "silent where labels decide", config: func(c *KubernetesConfig) { c.Events = eventsLabeled }, want: []Listing{base(func(l *Listing) { l.Events = "" })}},
		{
			name: "ours before AIBrix's, annotation before label", pod: says("@warmpath.dev/models", "a, b", "warmpath.dev/models", "c", "@model.aibrix.ai/name", "d", "@warmpath.dev/adapters", "x"),
			want: []Listing{base(func(l *Listing) {
				l.Models, l.Adapters = []string{"a", "b"}, []string{"x"}
				l.Labels = map[string]string{"app": "vllm", "warmpath.dev/models": "c"}
				l.Annotations = map[string]string{"warmpath.dev/models": "a, b", "model.aibrix.ai/name": "d", "warmpath.dev/adapters": "x"}
			})},
		},
		{
			name: "events where they are", config: func(c *KubernetesConfig) { c.Events = eventsLabeled },
			pod: says("warmpath.dev/events-port", "6000", "warmpath.dev/replay-port", "7000", "warmpath.dev/ranks", "2"),
			want: []Listing{base(func(l *Listing) {
				l.Events, l.Replay, l.Ranks = "tcp://10.0.0.1:6000", "tcp://10.0.0.1:7000", 2
				l.Labels = map[string]string{"app": "vllm", "warmpath.dev/events-port": "6000", "warmpath.dev/replay-port": "7000", "warmpath.dev/ranks": "2"}
			})},
		},
		{
			name: "topic", config: func(c *KubernetesConfig) { c.Topic = "kv@{pod}@{model}" }, pod: says("warmpath.dev/events", "true", "warmpath.dev/models", "m"),
			want: []Listing{base(func(l *Listing) {
				l.Events, l.Topic, l.Models = "", "kv@p@m", []string{"m"}
				l.Labels = map[string]string{"app": "vllm", "warmpath.dev/events": "true", "warmpath.dev/models": "m"}
			})},
		},
		{
			name: "ports of a pool", pod: says("warmpath.dev/port", "1", "warmpath.dev/events", "on"), ports: []int{8000, 8001},
			want: []Listing{base(func(l *Listing) {
				l.guess, l.Labels = guess, map[string]string{"app": "vllm", "warmpath.dev/port": "1", "warmpath.dev/events": "on"}
			}), base(func(l *Listing) {
				l.Name, l.Address = "ns/p:8001", "10.0.0.1:8001"
				l.guess = []eventSource{{0, "tcp://10.0.0.1:5558", "tcp://10.0.0.1:5559"}}
				l.Labels = map[string]string{"app": "vllm", "warmpath.dev/port": "1", "warmpath.dev/events": "on"}
			})},
		},
		{name: "TensorRT-LLM", pod: says("model.aibrix.ai/engine", "trtllm"), want: []Listing{base(func(l *Listing) {
			l.Metrics = "http://10.0.0.1:8000/prometheus/metrics"
			l.Labels = map[string]string{"app": "vllm", "model.aibrix.ai/engine": "trtllm"}
		})}},
		{name: "another container was restarted", pod: func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "sidecar"})
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: "sidecar", RestartCount: 3})
		}, want: []Listing{base()}},
		{name: "no container has the port", ports: []int{8000}, pod: func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = nil
			p.Status.ContainerStatuses[0].RestartCount = 3
		}, want: []Listing{base(func(l *Listing) { l.Process = "uid-1/3" })}},
		{name: "nonsense", pod: says("warmpath.dev/port", "http", "warmpath.dev/events", "perhaps"), want: []Listing{base(func(l *Listing) {
			l.Labels = map[string]string{"app": "vllm", "warmpath.dev/port": "http", "warmpath.dev/events": "perhaps"}
		})}, err: `warmpath.dev/port: "http" is not a number from 1 to 65535; it is ignored
warmpath.dev/events: "perhaps" is neither true nor false; it is ignored`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := DefaultConfig().Kubernetes
			if tt.config != nil {
				tt.config(&cfg)
			}
			var changes []func(*corev1.Pod)
			if tt.pod != nil {
				changes = append(changes, tt.pod)
			}
			got, err := cfg.podListings(pod("p", "10.0.0.1", changes...), tt.ports, rankPod)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(Listing{}, eventSource{})); diff != "" {
				t.Errorf("listings (-want +got):\n%s", diff)
			}
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != tt.err {
				t.Errorf("error %q, want %q", text, tt.err)
			}
		})
	}
}

// Against a dumb model: random histories of pods, with lists in between that
// tell of several changes at once. The pool has an endpoint for every pod that
// runs and has an address, candidates are exactly those of ready pods that are
// not terminating, and an endpoint is another one exactly when the process is.
func TestKubernetes_HistoriesAgainstModel(t *testing.T) {
	cfg := DefaultConfig().Kubernetes
	cfg.PodSelector = "app"
	rapid.Check(t, func(t *rapid.T) {
		p := still(told{name: "kubernetes"})
		w := &kubeWatch{Kubernetes: &Kubernetes{cfg: cfg, log: slog.New(slog.DiscardHandler), metrics: newKubeMetrics(prometheus.NewRegistry())}, faults: map[string]string{}}
		store := newKubeStore()
		store.lists, store.listed = w.metrics.lists[resourcePods], func() {}
		store.tell = func(objects []kubeObject) { p.apply(1, w.podChanges(objects, "", nil, rankPod)) }
		cluster := map[string]*corev1.Pod{}
		seen := map[string]string{} // what identified the process of an endpoint
		states := map[string]*State{}
		unseen := false // the watch is cut: the pool learns by the next list
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			name := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "pod")
			old := cluster[name]
			var err error
			switch action := rapid.IntRange(0, 9).Draw(t, "action"); {
			case action == 0:
				unseen = true
			case action == 1 && unseen:
				var list []any
				for _, q := range cluster {
					list = append(list, q)
				}
				err = store.Replace(list, "")
				unseen = false
			case action == 2 && old != nil:
				delete(cluster, name)
				if !unseen {
					err = store.Delete(old)
				}
			default:
				q := pod(name, rapid.SampledFrom([]string{"", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"}).Draw(t, "ip"))
				q.UID = types.UID(rapid.SampledFrom([]string{"u", "v"}).Draw(t, "uid"))
				q.Status.Phase = rapid.SampledFrom([]corev1.PodPhase{corev1.PodRunning, corev1.PodRunning, corev1.PodPending, corev1.PodFailed}).Draw(t, "phase")
				q.Status.ContainerStatuses[0].RestartCount = rapid.Int32Range(0, 1).Draw(t, "restarts")
				q.Labels["zone"] = rapid.SampledFrom([]string{"x", "y"}).Draw(t, "zone")
				if rapid.Bool().Draw(t, "not ready") {
					q.Status.Conditions[0].Status = corev1.ConditionFalse
				}
				if rapid.Bool().Draw(t, "terminating") {
					q.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
				}
				cluster[name] = q
				if !unseen {
					err = errors.Join(store.Add(q))
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if unseen {
				continue
			}
			shared := map[string]int{}
			var want []string
			for _, name := range slices.Sorted(maps.Keys(cluster)) {
				q := cluster[name]
				if q.Status.Phase == corev1.PodRunning && q.Status.PodIP != "" {
					want = append(want, "ns/"+name+":8000")
					shared[q.Status.PodIP]++
				}
			}
			snap := p.Snapshot()
			var got []string
			for _, e := range snap.Endpoints {
				got = append(got, e.Name)
				q := cluster[strings.TrimSuffix(strings.TrimPrefix(e.Name, "ns/"), ":8000")]
				if q == nil {
					t.Fatalf("%s is in the pool, and there is no such pod", e.Name)
				}
				may := q.DeletionTimestamp == nil && q.Status.Conditions[0].Status == corev1.ConditionTrue
				if e.Candidate() && !may || !e.Candidate() && may && shared[q.Status.PodIP] == 1 {
					t.Fatalf("%s: candidate %v, its pod is ready and stays: %v", e.Name, e.Candidate(), may)
				}
				if e.Address != q.Status.PodIP+":8000" || e.Labels["zone"] != q.Labels["zone"] {
					t.Fatalf("%s: %+v", e.Name, e.Spec)
				}
				process := fmt.Sprint(q.UID, q.Status.PodIP, q.Status.ContainerStatuses[0].RestartCount)
				if s := states[e.Name]; s != nil && (s == e.State) != (seen[e.Name] == process) {
					t.Fatalf("%s was process %s and is %s; its state is the same: %v", e.Name, seen[e.Name], process, s == e.State)
				}
				seen[e.Name], states[e.Name] = process, e.State
			}
			maps.DeleteFunc(states, func(name string, _ *State) bool { return !slices.Contains(got, name) })
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("the pool has %v, the cluster %v", got, want)
			}
		}
	})
}

func TestKubernetesConfig_Faults(t *testing.T) {
	c := KubernetesConfig{
		Namespaces: []string{"*", "Big", "a", "a"}, PodSelector: "a=(", Services: []string{"s:", "n/s:http", "S"}, InferencePools: []string{"n/p:80", "/p"},
		Port: 0, EventsPort: 5557, ReplayPort: 70000, Events: "maybe", Topic: "kv@{POD}",
	}
	want := []string{
		`namespaces[0]: "*" is every namespace; remove the others`,
		`namespaces[1]: "Big" is not a namespace`,
		`namespaces[3]: "a" is listed before`,
		`pod_selector: "a=(" is not a label selector`,
		`services[0]: "s:" has no valid port after the colon`,
		`services[2]: "S" has no valid name`,
		`inference_pools[0]: "n/p:80" has a port`,
		`inference_pools[1]: "/p" has no valid namespace`,
		`port: 0 is not a port`,
		`replay_port: 70000 is not a port`,
		`events: "maybe" is unknown; use one of auto, labeled`,
		`topic: "kv@{POD}" has an unknown placeholder`,
	}
	got := strings.Split(c.Validate().Error(), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d faults, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("fault %q, want %q", got[i], want[i])
		}
	}
	if err := DefaultConfig().Kubernetes.Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
}

func TestKubernetesConfig_Access(t *testing.T) {
	c := KubernetesConfig{PodSelector: "a", Services: []string{"s", "other/s"}, InferencePools: []string{"pools/p"}}
	var got []string
	for _, a := range c.access([]string{"ns"}) {
		got = append(got, a.String())
	}
	want := []string{
		"get, list, watch pods in namespace ns",
		"get, list, watch endpointslices.discovery.k8s.io in namespace ns",
		"get, list, watch endpointslices.discovery.k8s.io in namespace other",
		"get, list, watch inferencepools.inference.networking.k8s.io in namespace pools",
		"get, list, watch pods in namespace pools",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("permissions (-want +got):\n%s", diff)
	}
	all := c.access([]string{"*"})
	if got := all[0].String(); got != "get, list, watch pods in all namespaces" || len(all) != 3 {
		t.Errorf("of all namespaces: %v", all)
	}
}
