package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"statusrelay/internal/status"
)

// sampleHub is the hub of the sample orchestrations.
const sampleHub = "samples"

// A Sample names one sample orchestration.
type Sample struct {
	Hub        string `json:"hub"`
	InstanceID string `json:"instanceId"`
}

// samples run for ever: each plays its orchestration, rests, and starts again
// as a new execution of the same instance. What they report has things in it
// that the policy must keep from customers.
var errRejected = errors.New("rejected")

type script struct {
	id, name, owner string
	play            func(context.Context, *run) error
}

func scripts() []script {
	return []script{
		{"order-4711", "OrderFulfilment", customerSubject, order},
		{"order-4712", "OrderFulfilment", "u-1002", order},
		{"video-0042", "Transcode", customerSubject, transcode},
		{"payment-1138", "Payment", "u-1002", payment},
		{"expense-0815", "Approval", customerSubject, approval},
	}
}

// A run is one execution of a sample orchestration, and how it reports.
type run struct {
	script
	pace    time.Duration // of one step, about
	publish func(context.Context, *status.Update) error

	mu       sync.Mutex
	started  time.Time
	sequence int64 // microseconds of the last report: grows, and needs no counter that survives
}

// sampleInstances lists the instances that playSamples plays.
func sampleInstances() []Sample {
	var list []Sample
	for _, s := range scripts() {
		list = append(list, Sample{sampleHub, s.id})
	}
	return list
}

// playSamples plays all samples until ctx ends.
func playSamples(ctx context.Context, pace time.Duration, publish func(context.Context, *status.Update) error) {
	var wg sync.WaitGroup
	for _, s := range scripts() {
		wg.Go(func() {
			for ctx.Err() == nil {
				r := &run{script: s, pace: pace, publish: publish}
				r.execute(ctx)
				r.rest(ctx, 6)
			}
		})
	}
	wg.Wait()
}

// execute plays one execution from Pending to its end.
func (r *run) execute(ctx context.Context) {
	r.started = time.Now()
	r.lifecycle(ctx, status.Pending, nil, nil)
	r.rest(ctx, 1)
	r.lifecycle(ctx, status.Running, nil, nil)
	switch err := r.play(ctx, r); {
	case ctx.Err() != nil: // stopping: the next start plays a new execution
	case err != nil:
		r.lifecycle(ctx, status.Failed, nil, &status.Failure{Type: "TaskFailedException", Message: err.Error()})
	default:
		r.lifecycle(ctx, status.Completed, map[string]any{"ok": true, "internalCost": 12.5}, nil)
	}
}

// rest waits about n steps, or until ctx ends.
func (r *run) rest(ctx context.Context, n float64) {
	t := time.NewTimer(time.Duration(n * float64(r.pace) * (0.6 + 0.8*rand.Float64())))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (r *run) lifecycle(ctx context.Context, s status.RuntimeStatus, output any, failure *status.Failure) {
	r.report(ctx, func(u *status.Update) {
		u.Kind, u.RuntimeStatus, u.Failure = status.KindLifecycle, s, failure
		if output != nil {
			u.Output = raw(output)
		}
	})
}

func (r *run) progress(ctx context.Context, custom map[string]any) {
	r.report(ctx, func(u *status.Update) {
		u.Kind, u.RuntimeStatus, u.CustomStatus = status.KindProgress, status.Running, raw(custom)
	})
}

// report publishes one update. One that is lost is repaired by the next: a
// sample does not fail because the broker was away.
func (r *run) report(ctx context.Context, fill func(*status.Update)) {
	now := time.Now()
	r.mu.Lock()
	r.sequence = max(r.sequence+1, now.UnixMicro())
	sequence, generation := r.sequence, r.started.UnixMilli()
	r.mu.Unlock()
	u := &status.Update{
		Hub: sampleHub, InstanceID: r.id, Name: r.name, Generation: &generation, Sequence: &sequence,
		CreatedTime: r.started.UTC(), LastUpdatedTime: now.UTC(),
		Labels: map[string]string{"owner": r.owner, "tenant": "contoso"},
	}
	fill(u)
	_ = r.publish(ctx, u)
}

// raw is v as JSON.
func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a sample that cannot be encoded is a mistake in this file
	}
	return b
}

func order(ctx context.Context, r *run) error {
	steps := []struct{ step, message string }{
		{"validate", "Checking the order"},
		{"reserve", "Reserving the items"},
		{"charge", "Charging the card"},
		{"pick", "Picking from shelf B-17"},
		{"pack", "Packing two parcels"},
		{"label", "Printing the labels"},
		{"ship", "Handing over to the carrier"},
		{"notify", "Telling the customer"},
	}
	for i, s := range steps {
		r.progress(ctx, map[string]any{
			"percent": 100 * i / len(steps), "step": s.step, "message": s.message,
			"stepNumber": i + 1, "steps": len(steps),
			"customer": map[string]any{"email": "m.abdallah@example.com"}, "internalCost": 4 * (i + 1),
		})
		r.rest(ctx, 2)
	}
	r.progress(ctx, map[string]any{"percent": 100, "step": "done", "message": "On its way", "steps": len(steps)})
	return nil
}

// transcode works on many parts at once: their reports overtake each other.
func transcode(ctx context.Context, r *run) error {
	const parts = 16
	var mu sync.Mutex
	done := 0
	report := func() {
		r.progress(ctx, map[string]any{
			"percent": 100 * done / parts, "step": "transcode",
			"message": fmt.Sprintf("%d of %d parts done", done, parts), "done": done, "parts": parts,
		})
	}
	report()
	var wg sync.WaitGroup
	queue := make(chan int, parts)
	for i := range parts {
		queue <- i
	}
	close(queue)
	for range 4 {
		wg.Go(func() {
			for range queue {
				r.rest(ctx, 3)
				mu.Lock()
				done++
				report()
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.progress(ctx, map[string]any{"percent": 100, "step": "mux", "message": "Joining the parts", "done": parts, "parts": parts})
	r.rest(ctx, 2)
	return nil
}

func payment(ctx context.Context, r *run) error {
	const attempts = 4
	for i := range attempts {
		r.progress(ctx, map[string]any{
			"percent": 20 + 15*i, "step": "charge", "message": fmt.Sprintf("Attempt %d of %d", i+1, attempts),
			"processor": map[string]any{"name": "acme", "apiKey": "sk_test_not_for_customers"},
		})
		r.rest(ctx, 3)
	}
	return errors.New("the card was declined by the issuer, account DE89 3704 0044 0532 0130 00")
}

func approval(ctx context.Context, r *run) error {
	r.progress(ctx, map[string]any{"percent": 10, "step": "submitted", "message": "Checking the receipts"})
	r.rest(ctx, 3)
	r.progress(ctx, map[string]any{
		"percent": 50, "step": "waiting", "message": "Waiting for approval by the manager", "approverNotes": "internal: ask finance first",
	})
	r.rest(ctx, 14)
	if rand.IntN(3) == 0 {
		r.progress(ctx, map[string]any{"percent": 90, "step": "decided", "message": "The manager said no"})
		return errRejected
	}
	r.progress(ctx, map[string]any{"percent": 90, "step": "decided", "message": "Approved, paying out"})
	r.rest(ctx, 3)
	r.progress(ctx, map[string]any{"percent": 100, "step": "paid", "message": "Paid out"})
	return nil
}
