package extproc

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

func TestConfig_Validate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	for _, tc := range []struct{ name, in, want string }{
		{"socket", "listen: unix:/run/warmpath.sock", ""},
		{"any interface", "listen: ':9002'", ""},
		{
			"all at once", `{listen: "9002", decision_timeout: 0s, max_body_bytes: -1, concurrent_body_bytes: -1, drain_delay: -1s, drain_timeout: -2s, sample_responses: .nan, tls: {client_ca: x}}`,
			`listen: "9002" is not host:port; use for example 127.0.0.1:9002, or unix:PATH
tls.cert: empty; set it to the file of the certificate, or empty all of tls
tls.key: empty; set it to the file of the certificate's key, or empty all of tls
decision_timeout: 0s is not positive; use for example 2s
max_body_bytes: -1 is out of range; use 1 to 1073741824
concurrent_body_bytes: -1 is negative; use for example 8388608, or 0 for the default
sample_responses: NaN is out of range; use 0 to 1
drain_delay: -1s is negative; use 0s or more
drain_timeout: -2s is negative; use 0s or more`,
		},
		{"socket without a path", "listen: 'unix:'", `listen: "unix:" has no path; use for example unix:/run/warmpath.sock`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := DefaultConfig()
			if err := yaml.Unmarshal([]byte(tc.in), &cfg); err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := cfg.Validate(); err != nil {
				got = err.Error()
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}
