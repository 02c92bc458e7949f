package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadme: the tests and the files that the README names exist.
func TestReadme(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tests.Write(source)
	}
	named := regexp.MustCompile("`(?:(Test|Fuzz)[A-Za-z]+…?|[a-z_]+\\.(?:go|sql|html)|[A-Z]+\\.md|\\.env\\.example)`").FindAllString(string(text), -1)
	if len(named) < 40 {
		t.Errorf("the README names only %d tests and files", len(named))
	}
	for _, name := range named {
		name = strings.Trim(name, "`")
		if strings.HasPrefix(name, "Test") || strings.HasPrefix(name, "Fuzz") {
			function := "func " + strings.TrimSuffix(name, "…")
			if !strings.HasSuffix(name, "…") {
				function += "("
			}
			if !strings.Contains(tests.String(), function) {
				t.Errorf("the README names %s, which is no test", name)
			}
		} else if _, err := os.Stat(name); err != nil {
			t.Errorf("the README names %s, which is no file", name)
		}
	}
}
