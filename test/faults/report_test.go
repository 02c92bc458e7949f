package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// record is the JSON of a row, which is printed, and appended to the file that FAULT_JSON names.
type record struct {
	Row      string             `json:"row"`
	OK       bool               `json:"ok"`
	Figures  map[string]float64 `json:"figures"`
	Statuses map[int]int        `json:"statuses"` // of the answers; 0: no answer
	Faults   []string           `json:"faults,omitempty"`
	Seconds  []second           `json:"seconds,omitempty"`
}

// second sums up the requests that began in one second.
type second struct {
	Statuses map[int]int `json:"statuses"`
	P50      float64     `json:"p50_ms"`
	P99      float64     `json:"p99_ms"`
}

// row is a test's line of the report.
type row struct {
	t  *testing.T
	mu sync.Mutex
	record
}

// newRow begins a row. In the short selection rows run in parallel.
func newRow(t *testing.T, name string) *row {
	t.Helper()
	if testing.Short() {
		t.Skip("not in short mode")
	}
	if !full {
		t.Parallel()
	}
	r := &row{t: t}
	r.Row, r.Figures, r.Statuses = name, map[string]float64{}, map[int]int{}
	t.Cleanup(r.print)
	return r
}

// maxFaults is how many faults of a row are reported.
const maxFaults = 20

// fault records a broken criterion and fails the test.
func (r *row) fault(format string, args ...any) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.Faults) == maxFaults {
		r.t.Fail()
		return
	}
	r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
	r.t.Errorf(format, args...)
}

// figure records a figure.
func (r *row) figure(name string, value float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Figures[name] = value
}

// atMost records a figure, the largest where there are several of this name, and fails the test
// where it exceeds the limit. In the short selection, whose rows run at once on any machine, only
// a time of another order fails.
func (r *row) atMost(name string, got, limit float64) {
	r.t.Helper()
	if !full && (strings.HasSuffix(name, "_s") || strings.HasSuffix(name, "_ms")) {
		limit *= 20
	}
	r.mu.Lock()
	r.Figures[name] = max(r.Figures[name], got)
	r.mu.Unlock()
	if got > limit {
		r.fault("%s = %.4g, at most %.4g is allowed", name, got, limit)
	}
}

// count counts an answer and fails the test where its status is a 5xx other than 503 busy.
func (r *row) count(a answer) {
	r.t.Helper()
	status := a.status()
	r.mu.Lock()
	r.Statuses[status]++
	r.mu.Unlock()
	if status >= 500 && !isBusy(a) && !isSlow(a) {
		r.fault("%v", a)
	}
}

// isSlow says that the short selection is not to blame the service for a refusal: beside other work
// it may take longer to get a connection to PostgreSQL than the service waits.
func isSlow(a answer) bool { return !full && a.status() == 503 }

// isBusy says that the service refused a request because a limiter was full.
func isBusy(a answer) bool {
	return a.status() == 503 && bytes.Contains(a.body, []byte(`"code":"busy"`)) &&
		a.Header.Get("Retry-After") != ""
}

// print ends a row.
func (r *row) print() {
	r.OK = !r.t.Failed()
	text, _ := json.Marshal(&r.record)
	verdict := map[bool]string{true: "ok", false: "FAILED"}[r.OK]
	if r.t.Skipped() {
		verdict = "skipped"
	}
	line := fmt.Sprintf("fault: %-24s %s", r.Row, verdict)
	for _, name := range slices.Sorted(maps.Keys(r.Figures)) {
		line += fmt.Sprintf(" %s=%.4g", name, r.Figures[name])
	}
	for _, status := range slices.Sorted(maps.Keys(r.Statuses)) {
		line += fmt.Sprintf(" %d×%d", r.Statuses[status], status)
	}
	fmt.Println(line)
	if name := os.Getenv("FAULT_JSON"); name != "" {
		if f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
			fmt.Fprintf(f, "%s\n", text)
			f.Close()
		}
	}
}

// sample is one request and its outcome.
type sample struct {
	start, end time.Time
	op         string
	address    int    // of the addresses of a load
	status     int    // 0: no answer
	reused     bool   // the connection had carried a request before
	note       string // what breaks the criteria of every row, "" for nothing
}

// quantile returns the q-th duration of samples.
func quantile(samples []sample, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	var all []time.Duration
	for _, s := range samples {
		all = append(all, s.end.Sub(s.start))
	}
	slices.Sort(all)
	return all[min(len(all)-1, int(q*float64(len(all))))]
}

// perSecond sums samples up by the second in which they began.
func perSecond(samples []sample) (out []second) {
	if len(samples) == 0 {
		return nil
	}
	slices.SortFunc(samples, func(a, b sample) int { return a.start.Compare(b.start) })
	zero := samples[0].start
	index := func(s sample) int { return int(s.start.Sub(zero) / time.Second) }
	for i := 0; i < len(samples); {
		j := i
		for j < len(samples) && index(samples[j]) == index(samples[i]) {
			j++
		}
		part := samples[i:j]
		out = append(out, second{perStatus(part),
			milliseconds(quantile(part, .5)), milliseconds(quantile(part, .99))})
		i = j
	}
	return out
}

// refused returns how many samples were refused. In the short selection the first half is the slow
// machine's.
func refused(samples []sample) int {
	n := len(samples) - perStatus(samples)[200]
	if !full {
		n = max(0, n-len(samples)/2)
	}
	return n
}

func perStatus(samples []sample) map[int]int {
	counts := map[int]int{}
	for _, s := range samples {
		counts[s.status]++
	}
	return counts
}
