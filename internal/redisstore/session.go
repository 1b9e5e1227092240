package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"statusrelay/internal/status"
)

// maxChannels bounds one SUBSCRIBE, so that no command of tens of thousands of
// names keeps Redis from everybody else.
const maxChannels = 500

var (
	errDeaf        = errors.New("the subscription delivers nothing")
	errOnlyOneDial = errors.New("a session keeps to its connection")
)

// session is the life of one connection of a Follower. go-redis' PubSub mends
// its connection by itself, without a word; a session that has connected
// therefore refuses to dial, ends with the first error, and leaves the mending
// to Run, which knows that there was a gap.
type session struct {
	*Follower
	gap bool // set once: a session before this one was connected

	pubsub    *redis.PubSub // set once
	restore   *wait         // set once: for everything that was wanted at the start
	sealed    atomic.Bool   // the PubSub has its connection
	connected bool          // owned by run
	restored  bool          // owned by supervise, read when run has returned

	probes chan string // what came on the probe channel, the newest only
}

// sealKey is where a context for the PubSub keeps its session's sealed.
type sealKey struct{}

// mayDial is asked by the store's dialer.
func mayDial(ctx context.Context) error {
	if sealed, _ := ctx.Value(sealKey{}).(*atomic.Bool); sealed != nil && sealed.Load() {
		return errOnlyOneDial
	}
	return nil
}

// sealable is the context to call the PubSub with.
func (s *session) sealable(ctx context.Context) context.Context {
	return context.WithValue(ctx, sealKey{}, &s.sealed)
}

// run connects and then receives, sends and supervises until one of them finds
// the connection wanting.
func (s *session) run(ctx context.Context) error {
	s.probes = make(chan string, 1)
	s.pubsub = s.store.client.Subscribe(ctx) // no channel: does not connect
	defer s.pubsub.Close()
	if err := s.pubsub.Subscribe(s.sealable(ctx), s.probe); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	s.sealed.Store(true)
	if _, err := s.pubsub.ReceiveTimeout(s.sealable(ctx), ioTimeout); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	s.connected = true
	s.restore = s.restoring()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.receive(ctx) })
	g.Go(func() error { return s.send(ctx) })
	g.Go(func() error { return s.supervise(ctx) })
	g.Go(func() error { // a read that waits knows no context
		<-ctx.Done()
		return s.pubsub.Close()
	})
	return g.Wait()
}

// restoring returns the wait for all that is wanted now to be live.
func (s *session) restoring() *wait {
	w := &wait{done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.topics {
		t.waits = append(t.waits, w)
		w.left++
	}
	if w.left == 0 {
		close(w.done)
	}
	return w
}

func (s *session) receive(ctx context.Context) error {
	ctx = s.sealable(ctx)
	for {
		got, err := s.pubsub.Receive(ctx)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		switch got := got.(type) {
		case *redis.Subscription:
			s.confirmed(got.Channel)
		case *redis.Message:
			if got.Channel == s.probe {
				s.heard(got.Payload)
			} else {
				s.published(got.Channel, got.Payload)
			}
		}
	}
}

// confirmed notes that Redis carried out the oldest command in flight for a
// channel.
func (s *session) confirmed(channel string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[channel]
	if t == nil { // the probe's
		return
	}
	t.inFlight--
	switch {
	case t.live():
		t.settle(nil)
	case t.idle() && !t.wanted:
		delete(s.topics, channel)
	}
}

func (s *session) heard(probe string) {
	select {
	case <-s.probes:
	default:
	}
	s.probes <- probe
}

func (s *session) published(channel, payload string) {
	s.mu.Lock()
	t := s.topics[channel]
	if t == nil || !t.wanted {
		s.mu.Unlock()
		return
	}
	about := t.subject
	s.mu.Unlock()
	if about.index != nil {
		s.touched(*about.index, payload)
	} else {
		s.offered(channel, about.key, payload)
	}
}

// touched takes a message about an index.
func (s *session) touched(index status.Index, payload string) {
	keys, err := parseTouched(index, payload)
	if err != nil {
		s.store.distrustIndex(index, err)
		s.options.Gap()
		return
	}
	if s.options.Touch != nil {
		s.options.Touch(index, keys)
	}
}

// offered takes a message about an instance.
func (s *session) offered(channel string, key status.Key, payload string) {
	version, stored, _ := strings.Cut(payload, "\n")
	r, err := decode(key, version, stored)
	if err == nil {
		s.options.Offer(r)
		return
	}
	s.store.distrust(key, err)
	s.mu.Lock()
	s.doubts[channel] = struct{}{}
	s.mu.Unlock()
	s.nudge()
}

// send carries out wishes, many in one command when many came at once.
func (s *session) send(ctx context.Context) error {
	for {
		for {
			subscribe, unsubscribe := s.commands()
			if len(subscribe)+len(unsubscribe) == 0 {
				break
			}
			if len(subscribe) > 0 {
				if err := s.pubsub.Subscribe(s.sealable(ctx), subscribe...); err != nil {
					return fmt.Errorf("subscribe: %w", err)
				}
			}
			if len(unsubscribe) > 0 {
				if err := s.pubsub.Unsubscribe(s.sealable(ctx), unsubscribe...); err != nil {
					return fmt.Errorf("unsubscribe: %w", err)
				}
			}
		}
		if err := s.readDoubtful(ctx); err != nil {
			return err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// commands takes what is to be sent next, a bounded number of channels.
func (s *session) commands() (subscribe, unsubscribe []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.moves {
		if len(subscribe) == maxChannels || len(unsubscribe) == maxChannels {
			break
		}
		delete(s.moves, name)
		t := s.topics[name]
		switch {
		case t == nil || t.wanted == t.on:
			continue
		case t.wanted:
			subscribe = append(subscribe, name)
		default:
			unsubscribe = append(unsubscribe, name)
		}
		t.on = t.wanted
		t.inFlight++
	}
	return subscribe, unsubscribe
}

// readDoubtful reads the instances whose messages could not be read.
func (s *session) readDoubtful(ctx context.Context) error {
	s.mu.Lock()
	var keys []status.Key
	for name := range s.doubts {
		if t := s.topics[name]; t != nil {
			keys = append(keys, t.key)
		}
	}
	clear(s.doubts)
	s.mu.Unlock()
	if len(keys) == 0 {
		return nil
	}
	records, err := s.store.Latest(ctx, keys)
	if err != nil {
		return err // the gap that follows reads them
	}
	for _, r := range records {
		if r != nil {
			s.options.Offer(r)
		}
	}
	return nil
}

// supervise reports the gap once everything is subscribed again, and proves in
// intervals that the connection delivers: a connection may be open and answer
// nothing, or be to a server that is the primary no more.
func (s *session) supervise(ctx context.Context) error {
	due := time.NewTimer(0)
	defer due.Stop()
	restored := s.restore.done
	for n, heard := 0, false; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-restored:
			restored, s.restored = nil, true
			if s.gap {
				s.store.metrics.gaps.Inc()
				s.options.Gap()
			}
		case <-due.C:
			var err error
			if heard, err = s.prove(ctx, strconv.Itoa(n)); err != nil {
				return err
			}
			n++
			due.Reset(s.options.ProbeInterval)
		}
		s.ready.Store(heard && s.restored)
	}
}

// prove sends a probe the way every writer sends and waits for it to arrive.
// It is no proof of deafness that the probe could not be sent: then Redis itself
// is away, or this process' way to it.
func (s *session) prove(ctx context.Context, probe string) (heard bool, err error) {
	sending, cancel := context.WithTimeout(ctx, s.options.ProbeTimeout)
	defer cancel()
	if err := s.store.client.Publish(sending, s.probe, probe).Err(); err != nil {
		s.store.options.Logger.Debug("redis probe not sent", "error", err)
		return false, nil
	}
	late := time.NewTimer(s.options.ProbeTimeout)
	defer late.Stop()
	for {
		select {
		case got := <-s.probes:
			if got == probe {
				return true, nil
			}
		case <-late.C:
			return false, errDeaf
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
