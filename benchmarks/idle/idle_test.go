package idle

import (
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestExposition_TellsWhatIsAskedFor(t *testing.T) {
	all := vllmMetrics().text(nil)
	for _, want := range []string{"vllm:num_requests_waiting{", "vllm:cache_config_info{", "vllm:request_prefill_time_seconds_sum{", "_bucket{", "http_request"} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is missing", want)
		}
	}
	if n := len(all); n < 30_000 || n > 100_000 {
		t.Errorf("%d bytes, which no vLLM has", n)
	}
	got := vllmMetrics().text(url.Values{"name[]": {"vllm:num_requests_waiting", "vllm:request_prefill_time_seconds_sum", "unknown"}})
	if n := strings.Count(got, "\nvllm:"); n != 2 || strings.Contains(got, "bucket") {
		t.Errorf("two names give\n%s", got)
	}
}

// The whole measurement, small.
func TestRun_MeasuresTheRealRouter(t *testing.T) {
	if runtime.GOOS != "linux" || testing.Short() {
		t.Skip("needs 127.0.0.0/8 to be local, and a build")
	}
	program := filepath.Join(t.TempDir(), "warmpath")
	if text, err := exec.Command("go", "build", "-o", program, "github.com/warmpath/warmpath/cmd/warmpath").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, text)
	}
	for _, filter := range []string{"true", "false"} {
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		err = Run(t.Context(), []string{"--warmpath", program, "--endpoints", "20", "--warm", "3s", "--for", "3s", "--json", "--filter=" + filter}, out)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		var r Result
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
		// 20 a second; how many of them a machine that is busy does is its matter.
		if r.ReadsPerSecond <= 0 || r.ReadsPerSecond > 30 || r.Cores <= 0 || r.OldestSeconds <= 0 || r.ResidentMB < 5 {
			t.Errorf("filter %s: %+v", filter, r)
		}
		if small := r.BytesPerRead < 10_000; small != (filter == "true") {
			t.Errorf("filter %s: %.0f bytes a read", filter, r.BytesPerRead)
		}
	}
}
