package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// items are those of the security checklist that must be accounted for: a letter and its highest number.
var items = []struct {
	letter string
	last   int
}{{"W", 18}, {"H", 11}, {"J", 16}, {"U", 8}, {"R", 4}, {"B", 6}, {"S", 6}}

// TestSecurityTableIsTrue holds the table of security.md to what there is: every item is in it once and in order, what it names as proof exists, and
// it says yes, or why not.
func TestSecurityTableIsTrue(t *testing.T) {
	text, err := os.ReadFile("security.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	tests := testsOfRepository(t)
	var want, got []string
	for _, i := range items {
		for n := 1; n <= i.last; n++ {
			want = append(want, fmt.Sprint(i.letter, n))
		}
	}
	row := regexp.MustCompile(`(?m)^\| ([A-Z]\d+) \|([^|]*)\|([^|]*)\| ([^|]*) \|$`)
	proof := regexp.MustCompile("`([^`]*)`")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		item, proofs, result := m[1], proof.FindAllStringSubmatch(m[3], -1), m[4]
		got = append(got, item)
		reason, accepted := strings.CutPrefix(result, "accepted: ")
		switch {
		case result != "yes" && (!accepted || len(reason) < 10):
			t.Errorf("%s: the result is %q, neither yes nor accepted with a reason", item, result)
		case result == "yes" && len(proofs) == 0:
			t.Errorf("%s: says yes without a test", item)
		case strings.HasPrefix(reason, "not yet"):
			for name := range tests {
				if regexp.MustCompile(`^(Test|Fuzz)` + item + `\D`).MatchString(name) {
					t.Errorf("%s: not yet, it says, but there is %s", item, name)
				}
			}
		}
		if strings.TrimSpace(m[2]) == "" {
			t.Errorf("%s: nothing is required", item)
		}
		for _, p := range proofs {
			target, isTarget := strings.CutPrefix(p[1], "make ")
			if isTarget && !regexp.MustCompile(`(?m)^`+target+`:`).Match(makefile) || !isTarget && !tests[p[1]] {
				t.Errorf("%s: there is no %s", item, p[1])
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the table has %v, want %v", got, want)
	}
}

// testsOfRepository are the names of all tests, benchmarks and fuzz targets.
func testsOfRepository(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	name := regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`)
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == ".tools") {
			return filepath.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range name.FindAllSubmatch(text, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil || len(tests) < 100 {
		t.Fatalf("found %d tests: %v", len(tests), err)
	}
	return tests
}
