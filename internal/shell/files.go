package shell

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// lookInterval is the time between looks at files that may have changed: with the
// time that streams and sockets take to notice, a right that was taken away ends
// delivery within 30 s.
const lookInterval = 5 * time.Second

// Files are read again when what is in them changes, and at SIGHUP. What cannot
// be read or used changes nothing: the former value stays in force, and the log
// and the metrics say so.
//
// Contents are compared, not times, and paths are opened anew each time:
// Kubernetes swaps a symbolic link somewhere on the way to a mounted file, which
// leaves the file's own times as they are and notifies nobody who watches it.
// Whoever writes a file should put it in place by renaming, or half of it may
// be read; which lasts for one look.
type Files struct {
	log               *slog.Logger
	reloads, failures *prometheus.CounterVec
	broken            *prometheus.GaugeVec

	mu  sync.Mutex
	all []*source // guarded by mu, and so is what each has seen
}

// NewFiles returns none yet; Load adds them. Metrics may be nil.
func NewFiles(log *slog.Logger, metrics prometheus.Registerer) *Files {
	const label = "file"
	f := &Files{
		log: log,
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "statusrelay_reloads_total", Help: "Times that a changed file came into force, by its kind.",
		}, []string{label}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "statusrelay_reload_failures_total", Help: "Times that a changed file could not be used, by its kind; what it said before stays in force.",
		}, []string{label}),
		broken: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "statusrelay_reload_broken", Help: "1 while a file cannot be used, by its kind: the next start would fail.",
		}, []string{label}),
	}
	if metrics != nil {
		metrics.MustRegister(f.reloads, f.failures, f.broken)
	}
	return f
}

// Loaded is what files say now. Value costs next to nothing.
type Loaded[T any] struct{ now atomic.Pointer[T] }

// Fixed returns a value that no file changes.
func Fixed[T any](value T) *Loaded[T] {
	l := &Loaded[T]{}
	l.now.Store(&value)
	return l
}

// Value is the value in force. It is not to be changed.
func (l *Loaded[T]) Value() T { return *l.now.Load() }

// Open reads a whole file, like os.ReadFile.
type Open func(path string) ([]byte, error)

// Load reads a value and has it read again when any of the files changes that
// read has opened, of which there may be several, and others each time. Files are
// of a kind, which is what the log and the metrics call them.
//
// The error is read's own. When files are read again only a Discreet one or an
// *fs.PathError is logged, since others may quote the file.
func Load[T any](f *Files, kind string, read func(Open) (T, error)) (*Loaded[T], error) {
	l := &Loaded[T]{}
	s := &source{kind: kind, take: func(open Open) error {
		value, err := read(open)
		if err == nil {
			l.now.Store(&value)
		}
		return err
	}}
	if err := s.read(); err != nil {
		return nil, err
	}
	f.reloads.WithLabelValues(kind) // the metrics are there before anything happens
	f.failures.WithLabelValues(kind)
	f.broken.WithLabelValues(kind)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, s)
	return l, nil
}

// LoadFile is Load of one file.
//
//	keys, err := shell.LoadFile(base.Files, "api_keys", path, auth.ParseKeys)
func LoadFile[T any](f *Files, kind, path string, parse func([]byte) (T, error)) (*Loaded[T], error) {
	return Load(f, kind, func(open Open) (value T, err error) {
		text, err := open(path)
		if err != nil {
			return value, fmt.Errorf("%s: %w", kind, err)
		}
		if value, err = parse(text); err != nil {
			return value, fmt.Errorf("%s %s: %w", kind, path, err)
		}
		return value, nil
	})
}

// Discreet is an error that can also be told without quoting what it is about.
type Discreet interface {
	error
	Discreet() string
}

// source is a value that is read from files.
type source struct {
	kind   string
	take   func(Open) error
	seen   map[string]sum // by path, all that was opened at the last reading
	failed bool           // the last reading
}

// sum tells contents apart, and reasons not to have them.
type sum struct {
	content [sha256.Size]byte
	failure string
}

func sumOf(text []byte, err error) sum {
	if err != nil {
		return sum{failure: err.Error()}
	}
	return sum{content: sha256.Sum256(text)}
}

// read takes the value and remembers what it was made of: exactly what was used,
// so that a change meanwhile is seen at the next look.
func (s *source) read() error {
	s.seen = map[string]sum{}
	err := s.take(func(path string) ([]byte, error) {
		text, err := os.ReadFile(path)
		s.seen[path] = sumOf(text, err)
		return text, err
	})
	s.failed = err != nil
	return err
}

// paths are those of the files that could be read. What else was opened may be no path: a
// file that names files may have a secret in the place of one.
func (s *source) paths() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.seen)), func(path string) bool { return s.seen[path].failure != "" })
}

func (s *source) changed() bool {
	for path, was := range s.seen {
		if sumOf(os.ReadFile(path)) != was {
			return true
		}
	}
	return false
}

// Any reports whether there is any file.
func (f *Files) Any() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all) > 0
}

// Run looks at the files, now and then and whenever again says so, until ctx ends.
func (f *Files) Run(ctx context.Context, again <-chan os.Signal) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f.look(false)
		case <-again:
			f.look(true)
		}
	}
}

// look reads what has changed; and, when asked to, what could not be used, so
// that whoever asked is told again.
func (f *Files) look(asked bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.all {
		if !s.changed() && (!asked || !s.failed) {
			continue
		}
		err := s.read()
		paths := s.paths()
		if err != nil {
			f.failures.WithLabelValues(s.kind).Inc()
			f.broken.WithLabelValues(s.kind).Set(1)
			f.log.Error("a changed file cannot be used: what it said before stays in force", "file", s.kind, "paths", paths, "reason", discreetly(err))
			continue
		}
		f.reloads.WithLabelValues(s.kind).Inc()
		f.broken.WithLabelValues(s.kind).Set(0)
		f.log.Info("a changed file is in force", "file", s.kind, "paths", paths)
	}
}

// discreetly says what is wrong without a word of what stands in the file.
func discreetly(err error) string {
	said := ""
	if e, ok := errors.AsType[Discreet](err); ok {
		said = e.Discreet()
	} else if e, ok := errors.AsType[*fs.PathError](err); ok {
		said = e.Error()
	}
	return cmp.Or(said, "check-config tells it in full")
}
