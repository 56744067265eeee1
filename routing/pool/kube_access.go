package pool

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Denied asks the cluster which of a's verbs this identity must not use. Every
// authenticated identity may ask that of itself (Kubernetes documentation,
// "Checking API Access", SelfSubjectAccessReview).
func (k *Kubernetes) Denied(ctx context.Context, a Access) ([]string, error) {
	reviews := k.dynamic.Resource(schema.GroupVersionResource{Group: "authorization.k8s.io", Version: "v1", Resource: "selfsubjectaccessreviews"})
	var denied []string
	for _, verb := range a.Verbs {
		review := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
			"spec": map[string]any{"resourceAttributes": map[string]any{
				"namespace": a.Namespace, "verb": verb, "group": a.Group, "resource": a.Resource,
			}},
		}}
		answer, err := reviews.Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.server, err)
		}
		if allowed, _, _ := unstructured.NestedBool(answer.Object, "status", "allowed"); !allowed {
			denied = append(denied, verb)
		}
	}
	return denied, nil
}

// Missing returns those of the configured InferencePools and Services that the
// cluster does not have, each with its kind. A Service without EndpointSlices
// counts as missing.
func (k *Kubernetes) Missing(ctx context.Context) ([]string, error) {
	var missing []string
	look := func(gvr schema.GroupVersionResource, kind, text string, options func(ref) metav1.ListOptions) error {
		for _, r := range parseRef(text).in(k.namespaces) {
			namespace := r.namespace
			if namespace == allNamespaces {
				namespace = metav1.NamespaceAll
			}
			list, err := k.dynamic.Resource(gvr).Namespace(namespace).List(ctx, options(r))
			if err != nil {
				return fmt.Errorf("%s %s: %w", kind, text, err)
			}
			if len(list.Items) > 0 {
				return nil
			}
		}
		missing = append(missing, kind+" "+text)
		return nil
	}
	for _, s := range k.cfg.Services {
		err := look(schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}, "Service", s, func(r ref) metav1.ListOptions {
			return metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + r.name, Limit: 1}
		})
		if err != nil {
			return nil, err
		}
	}
	for _, s := range k.cfg.InferencePools {
		err := look(schema.GroupVersionResource{Group: inferenceGroup, Version: "v1", Resource: "inferencepools"}, "InferencePool", s, func(r ref) metav1.ListOptions {
			return metav1.ListOptions{FieldSelector: "metadata.name=" + r.name}
		})
		if err != nil {
			return nil, err
		}
	}
	return missing, nil
}
