package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/deploy/conformance/cluster"
)

// encrypted gives the router a certificate and attaches it by what the chart
// renders for that. Envoy must then ask it over TLS, and check its name.
func (w *world) encrypted(t *testing.T, c *cluster.Cluster) {
	const name = "warmpath." + metav1.NamespaceDefault + ".svc"
	dir := t.TempDir()
	authority := issue(t, dir, name)
	_, err := w.client.CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(bounded(t), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "router-ca"}, Data: map[string]string{"ca.crt": authority},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.Router.Stop()
	config, err := os.ReadFile(w.Config())
	if err != nil {
		t.Fatal(err)
	}
	with := strings.Replace(string(config), "extproc: {", fmt.Sprintf("extproc: {tls: {cert: %q, key: %q}, ", dir+"/tls.crt", dir+"/tls.key"), 1)
	if err := os.WriteFile(w.Config(), []byte(with), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.StartRouter(bounded(t)); err != nil {
		t.Fatal(err)
	}
	w.unchosen(t, 5) // Envoy does not speak TLS with it yet
	apply(t, c, render(t, "tls: {existingSecret: router-tls, caConfigMap: router-ca}\n"))
	w.verdicts(t, "BackendTLSPolicy", "backendtlspolicies", "warmpath", "Accepted", "ResolvedRefs")
	eventually(t, "the router is asked over TLS", func() error { return w.routed(bounded(t)) })
	x, err := stack.ReadXDS(bounded(t), w.EnvoyAdmin)
	if err != nil {
		t.Fatal(err)
	}
	router, _ := stack.At(x.Processor, "grpc_service", "envoy_grpc", "cluster_name").(string)
	if found := fmt.Sprint(x.Clusters[router]); !strings.Contains(found, "UpstreamTlsContext") || !strings.Contains(found, name) {
		t.Errorf("Envoy's cluster of the router does not check for %s: %s", name, found)
	}
}

// issue writes a certificate for a name and its key to dir, and returns the
// authority that signed it.
func issue(t *testing.T, dir, name string) string {
	t.Helper()
	now := time.Now()
	sign := func(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) []byte {
		template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := newKey(), newKey()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	authority := sign(ca, ca, caKey, caKey)
	leaf := sign(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}}, ca, key, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, b := range map[string][]byte{"tls.crt": leaf, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return string(authority)
}

// render returns a folder of what the chart gives for values.
func render(t *testing.T, values string) string {
	t.Helper()
	dir := t.TempDir()
	chart, out := filepath.Join(dir, "chart"), filepath.Join(dir, "manifests")
	if err := os.CopyFS(chart, os.DirFS("../../chart")); err != nil {
		t.Fatal(err)
	}
	examples := filepath.Join(chart, "examples")
	if err := os.RemoveAll(examples); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(examples, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(examples, "values.yaml"), []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("go", "-C", "../../render", "run", ".", chart, out).CombinedOutput(); err != nil {
		t.Fatalf("render: %v\n%s", err, text)
	}
	return filepath.Join(out, "values")
}
