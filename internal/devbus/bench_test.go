package devbus_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
)

// body is about what a status update is.
var body = make([]byte, 512)

// fill puts n messages into the queue, in batches, and returns how many bytes of batches it took.
func fill(h *harness, s *azservicebus.Sender, n int) {
	h.t.Helper()
	for n > 0 {
		b, err := s.NewMessageBatch(h.ctx, nil)
		h.must(err)
		for ; n > 0; n-- {
			err := b.AddMessage(&azservicebus.Message{
				Body:                  body,
				ApplicationProperties: map[string]any{"instanceId": "i-0123456789", "hub": "h"},
			}, nil)
			if errors.Is(err, azservicebus.ErrMessageTooLarge) {
				break
			}
			h.must(err)
		}
		h.must(s.SendMessageBatch(h.ctx, b, nil))
	}
}

func BenchmarkSDKSendBatch(b *testing.B) {
	h := start(b, roomy())
	s := h.sender(queue)
	h.send(s, "warm up")
	b.ReportAllocs()
	b.ResetTimer()
	fill(h, s, b.N)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func BenchmarkSDKSend(b *testing.B) {
	h := start(b, roomy())
	s := h.sender(queue)
	h.send(s, "warm up")
	b.ReportAllocs()
	b.SetParallelism(64)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.SendMessage(h.ctx, &azservicebus.Message{Body: body}, nil); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkSDKReceiveComplete receives 500 at a time and settles with 128 workers, as the relay
// does at most.
func BenchmarkSDKReceiveComplete(b *testing.B) {
	h := start(b, roomy())
	fill(h, h.sender(queue), b.N)
	r := h.receiver(nil)
	b.ReportAllocs()
	b.ResetTimer()
	work := make(chan *azservicebus.ReceivedMessage, 1000)
	var settlers sync.WaitGroup
	for range 128 {
		settlers.Go(func() {
			for m := range work {
				if err := r.CompleteMessage(context.Background(), m, nil); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for got := 0; got < b.N; {
		ms, err := r.ReceiveMessages(h.ctx, min(500, b.N-got), nil)
		h.must(err)
		for _, m := range ms {
			work <- m
		}
		got += len(ms)
	}
	close(work)
	settlers.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
