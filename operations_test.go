package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestOperations looks for every metric and every event of the log in OPERATIONS.md.
func TestOperations(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	newApp(t).server.writeMetrics(&text)
	names := submatches(`(?m)^# TYPE (\S+)`, text.String())
	if len(names) < 15 {
		t.Errorf("metrics: %q", names)
	}
	files, _ := filepath.Glob("*.go")
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil || strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, pattern := range []string{
			`log\.(?:Info|Warn|Error)\("(\w+)"`, `log\.Log\(.*, level, "(\w+)"`, `\.event\(c, "(\w+)"`, // as it is logged
			`\.event\(c, map.*true: "(\w+)"`, `\.event\(c, map.*false: "(\w+)"`,
			`status: 50[2-4], code: "(\w+)"`, // problems that are logged under their code
		} {
			names = append(names, submatches(pattern, string(source))...)
		}
	}
	for _, name := range names {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("OPERATIONS.md does not explain %s", name)
		}
	}
}

// submatches returns what the group in pattern matches, each time.
func submatches(pattern, text string) (found []string) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}
