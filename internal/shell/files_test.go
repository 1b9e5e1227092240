package shell_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"statusrelay/internal/shell"
)

// put writes a file in place.
func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// count is a metric of one kind of file, -1 if there is none.
func count(t *testing.T, metrics prometheus.Gatherer, name, kind string) float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == kind {
				if f.GetType() == dto.MetricType_GAUGE {
					return m.GetGauge().GetValue()
				}
				return m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

// number is a file that says a number.
func number(path string) func(shell.Open) (int, error) {
	return func(open shell.Open) (int, error) {
		text, err := open(path)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(text)))
	}
}

// lookTime is longer than the time between two looks.
const lookTime = 6 * time.Second

// files are files that are looked at, and what is known of them.
type files struct {
	*testing.T
	all     *shell.Files
	metrics *prometheus.Registry
	log     bytes.Buffer
	again   chan os.Signal
}

// inBubble runs a test with a clock of its own; the files are real.
func inBubble(t *testing.T, test func(*files)) {
	synctest.Test(t, func(t *testing.T) {
		f := &files{T: t, metrics: prometheus.NewRegistry(), again: make(chan os.Signal)}
		f.all = shell.NewFiles(slog.New(slog.NewTextHandler(&f.log, nil)), f.metrics)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.all.Run(ctx, f.again) }()
		test(f)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// pass lets one look happen.
func (f *files) pass() {
	<-time.After(lookTime)
	synctest.Wait()
}

// counts wants the metrics of the kind "number".
func (f *files) counts(reloads, failures, broken float64) {
	f.Helper()
	got := [3]float64{}
	for i, name := range []string{"statusrelay_reloads_total", "statusrelay_reload_failures_total", "statusrelay_reload_broken"} {
		got[i] = count(f.T, f.metrics, name, "number")
	}
	if want := [3]float64{reloads, failures, broken}; got != want {
		f.Errorf("reloads, failures and broken: got %v, want %v", got, want)
	}
}

// A file that changes is read again; one that breaks changes nothing and is told
// once, without a word of it; one that is mended counts again.
func TestFileIsReadAgainWhenItChanges(t *testing.T) {
	inBubble(t, func(f *files) {
		path := filepath.Join(f.TempDir(), "number")
		put(f.T, path, "1")
		n, err := shell.Load(f.all, "number", number(path))
		if err != nil {
			f.Fatal(err)
		}
		want := func(value int, what string) {
			f.Helper()
			f.pass()
			if got := n.Value(); got != value {
				f.Errorf("%s: got %d, want %d", what, got, value)
			}
		}
		want(1, "unchanged")
		f.counts(0, 0, 0)
		put(f.T, path, "2")
		want(2, "changed")
		f.counts(1, 0, 0)
		put(f.T, path, "c4n4ry")
		want(2, "broken")
		want(2, "broken still")
		f.counts(1, 1, 1)
		if err := os.Remove(path); err != nil {
			f.Fatal(err)
		}
		want(2, "away")
		f.counts(1, 2, 1)
		put(f.T, path, "3")
		want(3, "mended")
		f.counts(2, 2, 0)
		said := f.log.String()
		for _, part := range []string{`file=number`, path, "no such file", "check-config"} {
			if !strings.Contains(said, part) {
				f.Errorf("the log lacks %q:\n%s", part, said)
			}
		}
		if strings.Contains(said, "c4n4ry") {
			f.Errorf("the log quotes the file:\n%s", said)
		}
	})
}

// What Kubernetes does to a mounted volume: a link to a link, of which one in the
// middle is swapped. The file that is named does not change, nor does its time.
func TestFileBehindSwappedLinksIsReadAgain(t *testing.T) {
	inBubble(t, func(f *files) {
		dir := f.TempDir()
		old := time.Now().Add(-time.Hour)
		for i, text := range []string{"1", "2"} {
			version := filepath.Join(dir, fmt.Sprint("..v", i))
			if err := os.Mkdir(version, 0o700); err != nil {
				f.Fatal(err)
			}
			put(f.T, filepath.Join(version, "number"), text)
			if err := os.Chtimes(filepath.Join(version, "number"), old, old); err != nil {
				f.Fatal(err)
			}
		}
		link := func(target, name string) {
			f.Helper()
			if err := os.Symlink(target, filepath.Join(dir, "new")); err != nil {
				f.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, name)); err != nil {
				f.Fatal(err)
			}
		}
		link("..v0", "..data")
		link("..data/number", "number")
		n, err := shell.Load(f.all, "number", number(filepath.Join(dir, "number")))
		if err != nil || n.Value() != 1 {
			f.Fatal(n, err)
		}
		link("..v1", "..data")
		f.pass()
		if n.Value() != 2 {
			f.Errorf("got %d, want 2", n.Value())
		}
	})
}

// Files that a file names are looked at as well, also those that it names later.
func TestFilesThatAFileNamesAreReadAgain(t *testing.T) {
	inBubble(t, func(f *files) {
		dir := f.TempDir()
		index, a, b := filepath.Join(dir, "index"), filepath.Join(dir, "a"), filepath.Join(dir, "b")
		put(f.T, index, a)
		put(f.T, a, "1")
		put(f.T, b, "2")
		n, err := shell.Load(f.all, "number", func(open shell.Open) (int, error) {
			path, err := open(index)
			if err != nil {
				return 0, err
			}
			return number(string(path))(open)
		})
		if err != nil {
			f.Fatal(err)
		}
		for _, c := range []struct {
			path, text string
			want       int
		}{{a, "10", 10}, {index, b, 2}, {b, "20", 20}, {a, "11", 20}} {
			put(f.T, c.path, c.text)
			if f.pass(); n.Value() != c.want {
				f.Errorf("%s in %s: got %d, want %d", c.text, filepath.Base(c.path), n.Value(), c.want)
			}
		}
		f.counts(3, 0, 0)
	})
}

// Whoever asks is not kept waiting, and is told again what is wrong.
func TestAskingLooksAtOnce(t *testing.T) {
	inBubble(t, func(f *files) {
		path := filepath.Join(f.TempDir(), "number")
		put(f.T, path, "1")
		n, err := shell.Load(f.all, "number", number(path))
		if err != nil {
			f.Fatal(err)
		}
		put(f.T, path, "2")
		f.again <- os.Interrupt
		synctest.Wait()
		if n.Value() != 2 {
			f.Errorf("got %d, want 2", n.Value())
		}
		f.again <- os.Interrupt
		synctest.Wait()
		f.counts(1, 0, 0)
		put(f.T, path, "x")
		for range 2 {
			f.again <- os.Interrupt
			synctest.Wait()
		}
		f.counts(1, 2, 1)
	})
}

// An error that can be told without quoting is told so; the full one is for whoever
// starts the program.
func TestBrokenFileIsToldDiscreetly(t *testing.T) {
	inBubble(t, func(f *files) {
		path := filepath.Join(f.TempDir(), "number")
		put(f.T, path, "1")
		read := func(open shell.Open) (int, error) {
			n, err := number(path)(open)
			if err != nil {
				return 0, fmt.Errorf("number: %w", discreet{err})
			}
			return n, nil
		}
		if _, err := shell.Load(f.all, "number", read); err != nil {
			f.Fatal(err)
		}
		put(f.T, path, "c4n4ry")
		f.pass()
		if said := f.log.String(); !strings.Contains(said, "on line 1") || strings.Contains(said, "c4n4ry") {
			f.Errorf("the log says %s", said)
		}
		if _, err := shell.Load(f.all, "number", read); err == nil || !strings.Contains(err.Error(), "c4n4ry") {
			f.Errorf("loading it: got %v", err)
		}
	})
}

type discreet struct{ error }

func (discreet) Discreet() string { return "it is on line 1" }

func TestFixedValueStays(t *testing.T) {
	want := errors.New("x")
	if got := shell.Fixed(want).Value(); got != want {
		t.Errorf("got %v", got)
	}
}
