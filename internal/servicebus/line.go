package servicebus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/cenkalti/backoff/v5"
)

const (
	openTimeout  = 30 * time.Second
	closeTimeout = 2 * time.Second
)

var (
	errLinkLost = errors.New("the link was lost") // all that the SDK says is that it received nothing
	errStopped  = errors.New("stopped")
)

// A line is one Client of the SDK and the one Receiver or Sender on it. At the first sign of trouble it is given up and
// replaced, client and connection too, because the SDK's own recovery (azservicebus 1.11) has ends that lead nowhere:
//
//   - ReceiveMessages on a link detached with server-busy, timeout or operation-cancelled returns (nil, nil) at once for ever;
//   - a Sender whose link was detached with one of these, or with a fatal condition, fails for ever;
//   - settling a message of a broken connection tears down the connection that replaced it, if it is the same Client's;
//   - a fatal error on one link closes the connection under all the others of its Client;
//   - while the broker detaches every link, nothing waits between one attempt and the next.
type line[E any] struct {
	client *azservicebus.Client
	end    E // *azservicebus.Receiver or *azservicebus.Sender

	ctx    context.Context // ends when the line is given up
	giveUp context.CancelFunc
	proven atomic.Bool // a message went over it
}

// lines keeps one line up, made when somebody asks for it.
type lines[E any] struct {
	// set once
	entity string
	dial   func() (*azservicebus.Client, error)
	attach func(context.Context, *azservicebus.Client) (E, error) // makes the end and its links
	opened func()                                                 // counts
	log    *slog.Logger

	current atomic.Pointer[line[E]]
	turn    chan struct{} // of capacity 1, full while somebody makes a line
	closing sync.WaitGroup

	mu        sync.Mutex
	backoff   *backoff.ExponentialBackOff
	notBefore time.Time // of the next attempt
	last      error     // why there was no line when there was none last
}

func newLines[E any](o *Options, attach func(context.Context, *azservicebus.Client) (E, error), opened func()) (*lines[E], error) {
	dial, err := o.dialer()
	if err != nil {
		return nil, err
	}
	return &lines[E]{
		entity: o.entity(), dial: dial, attach: attach, opened: opened, log: o.Logger.With("entity", o.entity()),
		turn:    make(chan struct{}, 1),
		backoff: jittered(100*time.Millisecond, 10*time.Second),
		last:    errors.New("not connected yet"),
	}, nil
}

// jittered doubles from initial to most, each time give or take a half.
func jittered(initial, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = initial, most, 2
	return b
}

// get gives the line that is up, or makes one, not sooner after a failure than the back-off allows.
func (s *lines[E]) get(ctx context.Context) (*line[E], error) {
	if l := s.current.Load(); l != nil {
		return l, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w while waiting for a connection: %w", ctx.Err(), s.err())
	}
	if l := s.current.Load(); l != nil {
		return l, nil
	}
	if !sleep(ctx, s.pause()) {
		return nil, fmt.Errorf("%w while waiting for a connection: %w", ctx.Err(), s.err())
	}
	l, err := s.open(ctx)
	if err != nil {
		err = explain(err, s.entity)
		if ctx.Err() == nil { // else it is not the broker who failed
			s.failed(err, false)
			s.log.Warn("service bus: no connection", "error", err)
		}
		return nil, err
	}
	s.current.Store(l)
	s.opened()
	s.log.Info("service bus: connected")
	return l, nil
}

func (s *lines[E]) open(ctx context.Context) (*line[E], error) {
	client, err := s.dial()
	if err != nil {
		return nil, err
	}
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	end, err := s.attach(opening, client)
	if err != nil {
		s.close(client)
		return nil, err
	}
	l := &line[E]{client: client, end: end}
	l.ctx, l.giveUp = context.WithCancel(context.WithoutCancel(ctx))
	return l, nil
}

// lose gives a line up. Others may have done so before, and a newer one may be up.
func (s *lines[E]) lose(l *line[E], cause error) {
	if !s.current.CompareAndSwap(l, nil) {
		return
	}
	l.giveUp()
	s.failed(explain(cause, s.entity), l.proven.Load())
	s.log.Warn("service bus: connection given up", "error", s.err())
	s.close(l.client)
}

// failed makes the next attempt wait: longer each time, until a line has proven that it works.
func (s *lines[E]) failed(cause error, proven bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if proven {
		s.backoff.Reset()
	}
	s.notBefore = time.Now().Add(s.backoff.NextBackOff())
	s.last = cause
}

func (s *lines[E]) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Until(s.notBefore)
}

// err says why there is no line; it is meaningless when there is one.
func (s *lines[E]) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// health is nil while a line is up.
func (s *lines[E]) health() error {
	if s.current.Load() != nil {
		return nil
	}
	return s.err()
}

// close closes a client in the background: that says goodbye on every link, and errors of links already gone mean nothing.
func (s *lines[E]) close(client *azservicebus.Client) {
	s.closing.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = client.Close(ctx)
	})
}

// stop gives the line up and waits until it and those before it are closed, unless the broker has gone silent: then the
// SDK can keep a goroutine for up to a minute (its releaser ignores the context of Close), for which nobody has to wait.
func (s *lines[E]) stop() {
	if l := s.current.Swap(nil); l != nil {
		l.giveUp()
		s.close(l.client)
	}
	s.mu.Lock()
	s.last = errStopped
	s.mu.Unlock()
	closed := make(chan struct{})
	go func() { s.closing.Wait(); close(closed) }()
	timeout := time.NewTimer(2 * closeTimeout)
	defer timeout.Stop()
	select {
	case <-closed:
	case <-timeout.C:
		s.log.Warn("service bus: closed without the broker's consent")
	}
}

// sleep waits and reports whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
