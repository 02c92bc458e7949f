//go:build fault

package main

// fault_judge_test.go holds what happened against the criteria, and reports it: a line and a JSON record a row.

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// quantile returns the q-th duration of samples.
func quantile(samples []sample, q float64) time.Duration {
	var all []time.Duration
	for _, s := range samples {
		all = append(all, s.end.Sub(s.start))
	}
	slices.Sort(all)
	if all == nil {
		return 0
	}
	return all[min(len(all)-1, int(q*float64(len(all))))]
}

// record is the JSON of a row: "make fault" prints one for each.
type record struct {
	Row      string             `json:"row"`
	OK       bool               `json:"ok"`
	Figures  map[string]float64 `json:"figures"`
	Statuses map[int]int        `json:"statuses"`
	Faults   []string           `json:"faults,omitempty"`
	Seconds  []second           `json:"seconds,omitempty"`
}

type second struct {
	Statuses map[int]int `json:"statuses"`
	P50      float64     `json:"p50_ms"`
	P99      float64     `json:"p99_ms"`
}

// perSecond sorts samples into seconds by their start.
func perSecond(samples []sample) (out []second) {
	if len(samples) == 0 {
		return nil
	}
	slices.SortFunc(samples, func(a, b sample) int { return a.start.Compare(b.start) })
	zero := samples[0].start
	for i := 0; i < len(samples); {
		n := int(samples[i].start.Sub(zero) / time.Second)
		j := i
		for j < len(samples) && int(samples[j].start.Sub(zero)/time.Second) == n {
			j++
		}
		out = append(out, second{perStatus(samples[i:j]), milliseconds(quantile(samples[i:j], .5)), milliseconds(quantile(samples[i:j], .99))})
		i = j
	}
	return out
}

func perStatus(samples []sample) map[int]int {
	counts := map[int]int{}
	for _, s := range samples {
		counts[s.status]++
	}
	return counts
}

// row gathers the verdict on one fault.
type row struct {
	t *testing.T
	record
}

func newRow(t *testing.T, name string) *row {
	r := &row{t, record{Row: name, Figures: map[string]float64{}, Statuses: map[int]int{}}}
	t.Cleanup(r.print)
	return r
}

// fault records what is against the criteria.
func (r *row) fault(format string, args ...any) {
	if len(r.Faults) < 20 {
		r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
	}
	r.t.Errorf(format, args...)
}

// atMost records a figure and fails where it is over the limit. In the short form, which "go test" runs beside
// all else and on any machine, times only have to be of the right order, and one read in a hundred may be refused.
func (r *row) atMost(name string, got, limit float64) {
	r.Figures[name] = got
	switch {
	case testing.Short() && (strings.HasSuffix(name, "_s") || strings.HasSuffix(name, "_ms")):
		limit *= 4
	case testing.Short() && name == "reads_refused":
		limit += 15
	}
	if got > limit {
		r.fault("%s = %.4g, at most %.4g is allowed", name, got, limit)
	}
}

func (r *row) print() {
	r.OK = !r.t.Failed()
	text, _ := json.Marshal(r.record)
	line := fmt.Sprintf("fault: %-24s %s", r.Row, map[bool]string{true: "ok", false: "FAILED"}[r.OK])
	for _, name := range slices.Sorted(maps.Keys(r.Figures)) {
		line += fmt.Sprintf(" %s=%.4g", name, r.Figures[name])
	}
	for _, status := range slices.Sorted(maps.Keys(r.Statuses)) {
		line += fmt.Sprintf(" %d×%d", r.Statuses[status], status)
	}
	fmt.Printf("%s\nfault-json: %s\n", line, text)
	if name := os.Getenv("FAULT_JSON"); name != "" {
		if f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
			fmt.Fprintf(f, "%s\n", text)
			f.Close()
		}
	}
}

// judge holds the samples of l against what every fault must meet. broken says that answers may be missing.
// healed is when the cause was gone, and limit how long 503 may go on after it.
func (r *row) judge(l *load, broken bool, healed time.Time, limit time.Duration) {
	l.mu.Lock()
	samples := slices.Clone(l.samples)
	l.mu.Unlock()
	var last time.Time
	firstOK := clientPatience
	notes := map[string]int{}
	for _, s := range samples {
		r.Statuses[s.status]++
		if s.note != "" && (s.status != 0 || !broken) {
			notes[s.op+": "+s.note]++
		}
		if (s.status == 503 || s.status == 0) && s.end.After(last) {
			last = s.end
		}
		if s.status >= 200 && s.status < 300 && s.start.After(healed) {
			firstOK = min(firstOK, s.end.Sub(healed))
		}
	}
	for note, n := range notes {
		r.fault("%d× %s", n, strings.TrimSpace(note))
	}
	r.Seconds = perSecond(samples)
	r.atMost("slowest_ms", milliseconds(quantile(samples, 1)), milliseconds(faultDeadline))
	r.Figures["p50_ms"], r.Figures["p99_ms"] = milliseconds(quantile(samples, .5)), milliseconds(quantile(samples, .99))
	if !healed.IsZero() {
		r.Figures["first_success_ms"] = milliseconds(firstOK)
		r.atMost("recovered_s", max(0, last.Sub(healed).Seconds()), limit.Seconds())
	}
}
