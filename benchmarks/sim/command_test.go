package sim

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/workload"
)

func TestParse_Faults(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--endpoint 3", "did you mean --endpoints?"},
		{"--preset conversaton", "did you mean conversation?"},
		{"--workload chat --strategies prefix-cach", "did you mean prefix-cache?"},
		{"--workload chat --strategies queue", "cannot run in virtual time"},
		{"--workload chatt", "did you mean chat?"},
		{"--workload chat --profile 9b", "--profile"},
		{"--workload chat --load x", "--load"},
		{"--workload chat --load 1 --speed 1", "use one of them"},
		{"--workload chat --set relese=1s", "did you mean release?"},
		{"--workload chat --set release=1h", "out of range"},
		{"--workload chat --seeds 0", "seeds: 0"},
		{"--workload chat --loss 2", "loss: 2"},
		{"", "no workload"},
	} {
		o, err := parse(strings.Fields(c.args))
		var p Plan
		if err == nil {
			if p, err = o.plan(); err == nil {
				err = p.Validate()
			}
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestPlan_EveryCombination(t *testing.T) {
	o, err := parse(strings.Fields("--workload chat,tools --endpoints 2,4 --load 0.5,0.9,1.3 --strategies random,prefix-cache:2+least-request --lag 0s,1s --set eviction_price=2"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.plan()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	if len(p.Items) != 2*2*3*2*2 {
		t.Errorf("%d cells, want 48", len(p.Items))
	}
	it := p.Items[len(p.Items)-1]
	if it.Name != "tools" || it.Endpoints != 4 || it.Load != 1.3 || it.Strategy != "prefix-cache:2,least-request" || it.Lag != time.Second || it.Routing.PrefixCache.EvictionPrice != 2 {
		t.Errorf("the last cell is %+v", it)
	}
}

// Events are replayed or not only where some are lost.
func TestPlan_Replay(t *testing.T) {
	o, err := parse(strings.Fields("--workload chat --loss 0,0.1 --replay true,false --strategies random"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.plan()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range p.Items {
		s := p.Items[i].WithDefaults()
		got = append(got, s.setting())
	}
	if want := []string{"", "loss 0.1", "loss 0.1, no replay"}; !slices.Equal(got, want) {
		t.Errorf("settings %q, want %q", got, want)
	}
	if o, err = parse(strings.Fields("--workload chat --replay maybe")); err == nil {
		_, err = o.plan()
	}
	if err == nil || !strings.Contains(err.Error(), "--replay") {
		t.Errorf("maybe: %v", err)
	}
}

// All presets are valid, whatever they name.
func TestPresets_Valid(t *testing.T) {
	for _, p := range presets() {
		o := &options{}
		if err := parseFlags(o.flags(), p.args); err != nil {
			t.Errorf("%s: %v", p.name, err)
			continue
		}
		o.trace = strings.Replace(o.trace, "benchmarks/", "../", 1)
		plan, err := o.plan()
		if err == nil {
			err = plan.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
}

// What was finished when it was interrupted stays.
func TestPlan_Interrupted(t *testing.T) {
	spec, err := workload.Preset("chat")
	if err != nil {
		t.Fatal(err)
	}
	spec.Requests = 50
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	p := Plan{Seeds: 2, Workers: 1}
	for _, s := range []string{"random", "least-request", "round-robin"} {
		p.Items = append(p.Items, Item{Name: "chat", Source: spec, Scenario: Scenario{Strategy: s, Endpoints: 2}})
	}
	p.Progress = func(s Step) {
		if s.Done == 2+3 { // two references, two seeds of the first cell, one of the second
			stop()
		}
	}
	r, err := p.Execute(ctx)
	if err == nil {
		t.Error("no error says that it was interrupted")
	}
	var b strings.Builder
	if err := r.Summary(&b); err != nil || !strings.Contains(b.String(), "random") {
		t.Errorf("%v: %s", err, b.String())
	}
	if len(r.Cells) < 2 || r.Cells[0].Seeds != 2 || r.Cells[len(r.Cells)-1].Strategy == "round-robin" {
		t.Errorf("cells %+v, want the first whole and the last not begun", r.Cells)
	}
}
