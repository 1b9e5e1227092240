package redisstore_test

import (
	"errors"
	"fmt"
	"testing"

	"statusrelay/internal/claim"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// What a request of so many events costs beside publishing them: to take and to
// settle them, and to give them positions. Each operation is one request.
func BenchmarkIngest(b *testing.B) {
	server := storetest.StartRedis(b)
	s, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ledger, err := claim.NewLedger(claim.Options{Memory: s})
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("claims=%d", n), func(b *testing.B) {
			for request := 0; b.Loop(); request++ {
				events := make([]*claim.Event, n)
				for i := range events {
					events[i] = claim.Of("", "", "/", fmt.Sprint(n, " ", request, " ", i), nil)
				}
				ledger.Take(b.Context(), events)
				for _, e := range events {
					if e.Verdict != claim.Free {
						b.Fatal(e.Verdict)
					}
					e.Published = true
				}
				ledger.Settle(b.Context(), events)
			}
		})
		b.Run(fmt.Sprintf("stamps=%d", n), func(b *testing.B) {
			for b.Loop() {
				updates := make([]*status.Update, n)
				for i := range updates {
					updates[i] = &status.Update{Hub: "h", InstanceID: fmt.Sprint(i), Kind: status.KindProgress}
				}
				if err := errors.Join(s.Stamp(b.Context(), updates)...); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
