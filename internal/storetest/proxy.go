package storetest

import (
	"bytes"
	"net"
	"sync"
	"testing"
)

// Proxy is a TCP proxy to a Redis that goes wrong on demand, for the faults that
// neither end notices by itself. The test's end ends it.
type Proxy struct {
	// Addr is host:port, to connect to instead of the Redis.
	Addr string

	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu          sync.Mutex
	links       map[*link]struct{} // guarded by mu
	subscribers int                // guarded by mu; links that have subscribed, gone ones too
	lose        []byte             // guarded by mu; see LoseAnswer
	holdUp      []byte             // guarded by mu; see HoldUp
	meanwhile   func()             // guarded by mu
}

// link is one proxied connection.
type link struct {
	client, server net.Conn

	// Guarded by the Proxy's mu.
	subscriber bool // it sent a SUBSCRIBE
	muted      bool // nothing reaches the client
	doomed     bool // the next answer does not reach the client and ends the link
}

// StartProxy starts a proxy to addr.
func StartProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), target: addr, listener: l, links: make(map[*link]struct{})}
	p.running.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.Cut()
		p.running.Wait()
	})
	return p
}

// Cut ends all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		_ = l.client.Close()
		_ = l.server.Close()
	}
}

// MuteSubscribers lets the open connections that have subscribed to something
// live on without delivering anything to their clients any more. It returns how
// many those are.
func (p *Proxy) MuteSubscribers() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for l := range p.links {
		if l.subscriber {
			l.muted = true
			n++
		}
	}
	return n
}

// Subscribers is how many connections have subscribed to something so far.
func (p *Proxy) Subscribers() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.subscribers
}

// LoseAnswer makes the next command that contains word be carried out, and its
// connection end instead of delivering the answer.
func (p *Proxy) LoseAnswer(word string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = []byte(word)
}

// HoldUp makes the next command that contains word wait until meanwhile returns.
func (p *Proxy) HoldUp(word string, meanwhile func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holdUp, p.meanwhile = []byte(word), meanwhile
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		l := &link{client: client, server: server}
		p.mu.Lock()
		p.links[l] = struct{}{}
		p.mu.Unlock()
		p.running.Go(func() {
			p.copy(l.server, l.client, func(b []byte) bool { return p.asked(l, b) })
		})
		p.running.Go(func() {
			p.copy(l.client, l.server, func([]byte) bool { return p.answers(l) })
			p.mu.Lock()
			delete(p.links, l)
			p.mu.Unlock()
		})
	}
}

// asked looks at what the client sent.
func (p *Proxy) asked(l *link, b []byte) (forward bool) {
	p.heldUp(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !l.subscriber && bytes.Contains(bytes.ToLower(b), []byte("\r\nsubscribe\r\n")) {
		l.subscriber = true
		p.subscribers++
	}
	if p.lose != nil && bytes.Contains(b, p.lose) {
		p.lose, l.doomed = nil, true
	}
	return true
}

// heldUp does what HoldUp says, without the lock: others go on meanwhile.
func (p *Proxy) heldUp(b []byte) {
	p.mu.Lock()
	meanwhile := p.meanwhile
	if p.holdUp == nil || !bytes.Contains(b, p.holdUp) {
		meanwhile = nil
	} else {
		p.holdUp, p.meanwhile = nil, nil
	}
	p.mu.Unlock()
	if meanwhile != nil {
		meanwhile()
	}
}

// answers says whether what the server sent reaches the client.
func (p *Proxy) answers(l *link) (forward bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.doomed {
		_ = l.client.Close()
		_ = l.server.Close()
	}
	return !l.muted && !l.doomed
}

// copy forwards until either end is gone, and then closes both.
func (p *Proxy) copy(to, from net.Conn, look func([]byte) bool) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && look(buf[:n]) {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
