package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// sources returns the text of all Go files that match a pattern, tests or not.
func sources(t *testing.T, tests bool) string {
	t.Helper()
	var text strings.Builder
	for _, pattern := range []string{"*.go", "test/*/*.go", "internal/*/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") != tests {
				continue
			}
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text.Write(source)
		}
	}
	return text.String()
}

var named = regexp.MustCompile("`(?:(?:Test|Fuzz)[A-Za-z]+…?|[a-z_/]+\\.(?:go|sql|html|md)|" +
	"[a-z]+/[a-z]+|[A-Z]+\\.md|deploy/[A-Z]+\\.md|\\.env\\.example)`")

// TestReadme: the tests and the files that the README names exist.
func TestReadme(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, names := sources(t, true), named.FindAllString(string(text), -1)
	for _, name := range names {
		name = strings.Trim(name, "`")
		if strings.HasPrefix(name, "Test") || strings.HasPrefix(name, "Fuzz") {
			function := "func " + strings.TrimSuffix(name, "…")
			if !strings.HasSuffix(name, "…") {
				function += "("
			}
			if !strings.Contains(tests, function) {
				t.Errorf("the README names %s, which is no test", name)
			}
		} else if _, err := os.Stat(name); err != nil {
			t.Errorf("the README names %s, which is no file", name)
		}
	}
}

// TestOperations looks for every metric and every event of the log in OPERATIONS.md.
func TestOperations(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("deploy/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	newApp(t).server.writeMetrics(&text)
	names := submatches(`(?m)^# TYPE (\S+)`, text.String())
	if len(names) < 15 {
		t.Errorf("metrics: %q", names)
	}
	code := sources(t, false)
	for _, pattern := range []string{
		`log\.(?:Info|Warn|Error)\("(\w+)"`, `LogAttrs\([^"]*"(\w+)"`, `\.event\(c, "(\w+)"`,
		`newProblem\(50[2-4], "(\w+)"`, // problems that are logged under their code
	} {
		found := submatches(pattern, code)
		if found == nil {
			t.Errorf("nothing matches %s", pattern)
		}
		names = append(names, found...)
	}
	for _, name := range names {
		if !strings.Contains(string(page), "`"+name) {
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
