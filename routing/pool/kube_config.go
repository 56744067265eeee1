package pool

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
)

// KubernetesConfig says which engines of a cluster are endpoints. Nothing of
// the cluster is read unless PodSelector, Services or InferencePools is set.
type KubernetesConfig struct {
	Kubeconfig string `yaml:"kubeconfig" help:"kubeconfig file; empty: the service account of the pod that this runs in"`
	Context    string `yaml:"context" help:"context of the kubeconfig; empty: its current one"`
	// Namespaces are looked at one by one, so that a Role in each is enough.
	Namespaces     []string `yaml:"namespaces" help:"namespaces that are looked at; empty: that of the service account or of the context; *: all, which takes a ClusterRole"`
	PodSelector    string   `yaml:"pod_selector" help:"label selector of engine pods, such as model.aibrix.ai/name or app=vllm; empty: no pods are looked for by label"`
	Services       []string `yaml:"services" help:"Services whose EndpointSlices list engines: [NAMESPACE/]NAME[:PORT], PORT a name or number where there are several"`
	InferencePools []string `yaml:"inference_pools" help:"InferencePools (inference.networking.k8s.io/v1) whose pods are engines: [NAMESPACE/]NAME"`
	Port           int      `yaml:"port" help:"port of the engine in pods that name none"`
	// Events says what holds for pods without warmpath.dev/events and
	// model.aibrix.ai/kv-events-enabled.
	Events     string `yaml:"events" help:"auto: engines whose pods do not say whether they publish KV events are asked; labeled: only pods that say so are followed"`
	EventsPort int    `yaml:"events_port" help:"port of the KV events of pods that say that they publish them, where neither pod nor engine tells the port"`
	ReplayPort int    `yaml:"replay_port" help:"port of their replay socket, if something listens there; 0: none"`
	// RelayPort is where the relays beside the engines listen, if their pods do
	// not say so; 0: there are none.
	RelayPort int    `yaml:"relay_port" help:"port of the relays beside the engines, for pods without the annotation warmpath.dev/relay; 0: none"`
	Topic     string `yaml:"topic" help:"topic of pods that publish to events.listen, for example kv@{pod}@{model}; {pod}, {namespace}, {ip} and {model} are filled in; empty: pods are dialed"`
}

// The values of [KubernetesConfig].Events, beside EventsAuto.
const eventsLabeled = "labeled"

// allNamespaces stands for every namespace.
const allNamespaces = "*"

// Enabled tells whether anything of a cluster is to be looked at.
func (c KubernetesConfig) Enabled() bool {
	return c.PodSelector != "" || len(c.Services) > 0 || len(c.InferencePools) > 0
}

// Access is a permission that discovery needs.
type Access struct {
	// Namespace is empty for all namespaces.
	Namespace string
	// Group and Resource name the kind, Group being empty for the core API.
	Group, Resource string
	Verbs           []string
}

// String returns the permission in words.
func (a Access) String() string {
	resource := a.Resource
	if a.Group != "" {
		resource += "." + a.Group
	}
	where := "in namespace " + a.Namespace
	if a.Namespace == "" {
		where = "in all namespaces"
	}
	return fmt.Sprintf("%s %s %s", strings.Join(a.Verbs, ", "), resource, where)
}

// access returns the permissions that c needs, given the namespaces that it
// means. Nothing else is ever asked of the cluster:
//
//   - pods (core API) get, list, watch: with a pod selector, in every
//     namespace; with InferencePools, in theirs.
//   - endpointslices.discovery.k8s.io get, list, watch: with Services.
//   - inferencepools.inference.networking.k8s.io get, list, watch: with
//     InferencePools.
func (c KubernetesConfig) access(namespaces []string) []Access {
	var out []Access
	add := func(namespace, group, resource string) {
		a := Access{namespace, group, resource, []string{"get", "list", "watch"}}
		if namespace == allNamespaces {
			a.Namespace = ""
		}
		if !slices.ContainsFunc(out, func(b Access) bool {
			return a.Resource == b.Resource && (a.Namespace == b.Namespace || b.Namespace == "")
		}) {
			out = append(out, a)
		}
	}
	if c.PodSelector != "" {
		for _, ns := range namespaces {
			add(ns, "", "pods")
		}
	}
	for _, s := range c.Services {
		for _, r := range parseRef(s).in(namespaces) {
			add(r.namespace, "discovery.k8s.io", "endpointslices")
		}
	}
	for _, s := range c.InferencePools {
		for _, r := range parseRef(s).in(namespaces) {
			add(r.namespace, inferenceGroup, "inferencepools")
			add(r.namespace, "", "pods")
		}
	}
	return out
}

// ref names a Service or InferencePool: [NAMESPACE/]NAME[:PORT].
type ref struct{ namespace, name, port string }

func parseRef(text string) ref {
	var r ref
	if ns, rest, ok := strings.Cut(text, "/"); ok {
		r.namespace, text = ns, rest
	}
	r.name, r.port, _ = strings.Cut(text, ":")
	return r
}

// in returns r in the namespaces where it is looked for: its own, or all of
// them.
func (r ref) in(namespaces []string) []ref {
	if r.namespace != "" {
		return []ref{r}
	}
	var out []ref
	for _, ns := range namespaces {
		out = append(out, ref{ns, r.name, r.port})
	}
	return out
}

// Validate reports every fault of c, one an error, each starting with the
// field's path below "pool.kubernetes".
func (c KubernetesConfig) Validate() error {
	var errs []error
	for i, ns := range c.Namespaces {
		if ns == allNamespaces {
			if len(c.Namespaces) > 1 {
				errs = append(errs, fmt.Errorf("namespaces[%d]: %q is every namespace; remove the others", i, ns))
			}
		} else if len(validation.IsDNS1123Label(ns)) > 0 {
			errs = append(errs, fmt.Errorf("namespaces[%d]: %q is not a namespace; use lower-case letters, digits and -", i, ns))
		} else if slices.Index(c.Namespaces, ns) < i {
			errs = append(errs, fmt.Errorf("namespaces[%d]: %q is listed before; remove one of them", i, ns))
		}
	}
	if _, err := labels.Parse(c.PodSelector); err != nil {
		errs = append(errs, fmt.Errorf("pod_selector: %q is not a label selector: %w; use for example app=vllm", c.PodSelector, err))
	}
	for _, f := range [...]struct {
		field string
		refs  []string
		ports bool
	}{{"services", c.Services, true}, {"inference_pools", c.InferencePools, false}} {
		for i, text := range f.refs {
			if err := validateRef(text, f.ports); err != nil {
				errs = append(errs, fmt.Errorf("%s[%d]: %q %w", f.field, i, text, err))
			}
		}
	}
	for _, f := range [...]struct {
		field       string
		value, from int
	}{{"port", c.Port, 1}, {"events_port", c.EventsPort, 1}, {"replay_port", c.ReplayPort, 0}, {"relay_port", c.RelayPort, 0}} {
		if c.Enabled() && (f.value < f.from || f.value > 65535) {
			errs = append(errs, fmt.Errorf("%s: %d is not a port; use %d to 65535", f.field, f.value, f.from))
		}
	}
	if c.Enabled() && c.Events != EventsAuto && c.Events != eventsLabeled {
		errs = append(errs, fmt.Errorf("events: %q is unknown; use one of %s, %s", c.Events, EventsAuto, eventsLabeled))
	}
	if _, err := expandTopic(c.Topic, podFacts{}); err != nil {
		errs = append(errs, fmt.Errorf("topic: %w", err))
	}
	return errors.Join(errs...)
}

func validateRef(text string, ports bool) error {
	r := parseRef(text)
	switch {
	case strings.Contains(text, "/") && len(validation.IsDNS1123Label(r.namespace)) > 0:
		return errors.New("has no valid namespace before the slash; use NAMESPACE/NAME or NAME")
	case len(validation.IsDNS1123Subdomain(r.name)) > 0:
		return errors.New("has no valid name; use NAMESPACE/NAME or NAME")
	case strings.Contains(text, ":") && !ports:
		return errors.New("has a port; an InferencePool has its own, so remove it")
	case strings.Contains(text, ":") && !validPort(r.port):
		return errors.New("has no valid port after the colon; use a port's name or number")
	}
	return nil
}

func validPort(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n > 0 && n < 65536 || len(validation.IsValidPortName(s)) == 0
}

// podFacts are what a topic is made of.
type podFacts struct{ pod, namespace, ip, model string }

// expandTopic fills in the placeholders of a topic.
func expandTopic(topic string, f podFacts) (string, error) {
	out := strings.NewReplacer("{pod}", f.pod, "{namespace}", f.namespace, "{ip}", f.ip, "{model}", f.model).Replace(topic)
	if strings.ContainsAny(out, "{}") {
		return "", fmt.Errorf("%q has an unknown placeholder; use {pod}, {namespace}, {ip} and {model}", topic)
	}
	return out, nil
}
