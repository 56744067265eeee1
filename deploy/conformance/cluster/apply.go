package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apitypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"

	// The CRDs are those of the versions that go.mod requires.
	_ "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)

// manager is the field manager of what is applied.
const manager = "conformance"

// servedTimeout bounds the wait for a new CRD to be served.
const servedTimeout = time.Minute

// CRDs are the folders of modules that hold the CRDs of Gateway API and of
// InferencePool, for [Cluster.InstallCRDs].
var CRDs = []CRDFolder{
	{"sigs.k8s.io/gateway-api", "config/crd/standard"},
	{"sigs.k8s.io/gateway-api-inference-extension", "config/crd/bases"},
}

// CRDFolder is a folder of a Go module that go.mod requires.
type CRDFolder struct{ Module, Folder string }

// InstallCRDs installs every manifest of the folders and waits until the new
// kinds are served. The working directory must be in a module that requires
// those of the folders.
func (c *Cluster) InstallCRDs(ctx context.Context, folders ...CRDFolder) error {
	for _, f := range folders {
		dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", f.Module).Output()
		if err != nil {
			return fmt.Errorf("module %s: %w", f.Module, explained(err))
		}
		files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), f.Folder, "*.yaml"))
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("module %s has no %s/*.yaml; was it downloaded? go mod download %[1]s", f.Module, f.Folder)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if err := c.Apply(ctx, "", text); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return nil
}

// explained adds what a failed command wrote to its error.
func explained(err error) error {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return err
}

// Apply creates or changes what the manifests say: YAML or JSON documents,
// lists included. Namespaced objects without a namespace get namespace. A field
// that the schema does not know is an error, which kubectl only warns of.
// Every document is tried; the errors are joined.
func (c *Cluster) Apply(ctx context.Context, namespace string, manifests []byte) error {
	return c.apply(ctx, namespace, manifests, nil)
}

// Validate has the API server check manifests as [Cluster.Apply] does, through
// admission, defaults and schema, and keeps nothing. What a document needs of
// others must be there: a namespace, a CRD.
func (c *Cluster) Validate(ctx context.Context, namespace string, manifests []byte) error {
	return c.apply(ctx, namespace, manifests, []string{metav1.DryRunAll})
}

func (c *Cluster) apply(ctx context.Context, namespace string, manifests []byte, dryRun []string) error {
	objects, err := Parse(manifests)
	if err != nil {
		return err
	}
	a, err := c.newApplier(dryRun)
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range objects {
		if err := a.apply(ctx, namespace, o); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err))
		}
	}
	return errors.Join(errs...)
}

// Parse returns the objects of YAML or JSON documents, those of lists one by
// one. Empty documents are left out.
func Parse(manifests []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifests)))
	for {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, &o.Object); err != nil {
			return nil, err
		}
		switch {
		case len(o.Object) == 0:
		case o.IsList():
			err := o.EachListItem(func(item runtime.Object) error {
				objects = append(objects, item.(*unstructured.Unstructured))
				return nil
			})
			if err != nil {
				return nil, err
			}
		default:
			objects = append(objects, o)
		}
	}
}

// applier applies objects of any kind.
type applier struct {
	dynamic   dynamic.Interface
	discovery discovery.DiscoveryInterface
	dryRun    []string
	// mapper knows the kinds that were served when it was made.
	mapper interface {
		RESTMapping(schema.GroupKind, ...string) (*meta.RESTMapping, error)
	}
}

func (c *Cluster) newApplier(dryRun []string) (*applier, error) {
	d, err := discovery.NewDiscoveryClientForConfig(c.Admin())
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(c.Admin())
	if err != nil {
		return nil, err
	}
	a := &applier{dynamic: dyn, discovery: d, dryRun: dryRun}
	return a, a.learnKinds()
}

func (a *applier) learnKinds() error {
	groups, err := restmapper.GetAPIGroupResources(a.discovery)
	if err != nil {
		return err
	}
	a.mapper = restmapper.NewDiscoveryRESTMapper(groups)
	return nil
}

func (a *applier) apply(ctx context.Context, namespace string, o *unstructured.Unstructured) error {
	kind := o.GroupVersionKind()
	mapping, err := a.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return err
	}
	var to dynamic.ResourceInterface = a.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		if o.GetNamespace() == "" {
			o.SetNamespace(namespace)
		}
		to = a.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace())
	}
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	force := true
	_, err = to.Patch(ctx, o.GetName(), apitypes.ApplyPatchType, body, metav1.PatchOptions{
		FieldManager: manager, Force: &force, FieldValidation: metav1.FieldValidationStrict, DryRun: a.dryRun,
	})
	if err == nil && kind.Kind == "CustomResourceDefinition" && a.dryRun == nil {
		return a.served(ctx, mapping.Resource, o.GetName())
	}
	return err
}

// served waits until a CRD is established and learns its kind.
func (a *applier) served(ctx context.Context, crds schema.GroupVersionResource, name string) error {
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		o, err := a.dynamic.Resource(crds).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		established := slices.ContainsFunc(conditions, func(c any) bool {
			m, _ := c.(map[string]any)
			return m["type"] == "Established" && m["status"] == "True"
		})
		if established {
			return a.learnKinds()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not served in time: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// Namespace makes a namespace.
func (c *Cluster) Namespace(ctx context.Context, name string) error {
	client, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

// touch changes an object, which moves the resource version of everything on.
func (c *Cluster) touch(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		return err
	}
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	err = maps.Delete(ctx, "touched", metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "touched"}}, metav1.CreateOptions{})
	return err
}
