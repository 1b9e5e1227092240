package statusrelay_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	statusrelay "statusrelay/clients/go"
)

func ExampleExecution() {
	// The clock of the orchestrator, which says the same at each replay.
	execution := statusrelay.Started(time.UnixMilli(1795329321692))

	reserve := execution.Next() // travels in the activity's input
	charge := execution.Next()
	fmt.Println(reserve, charge)

	// Within the activity that charges the card, as it proceeds:
	fmt.Println(charge.Tick(1), charge.Tick(2))
	// Output:
	// {1795329321692 1000} {1795329321692 2000}
	// {1795329321692 2001} {1795329321692 2002}
}

func ExampleNotifier() {
	// Stands for a notifier: `go run ./cmd/relay dev` has a real one.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Printf("%s\n", body)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()

	publisher, err := statusrelay.NewNotifier(statusrelay.NotifierOptions{
		URL: server.URL, APIKey: "srk_…", Name: "shipping",
		Now: func() time.Time { return time.UnixMilli(1795329322000) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = publisher.Publish(context.Background(), statusrelay.Update{
		Hub: "orders", InstanceID: "order-4711",
		Position:     statusrelay.Position{Generation: 1795329321692, Sequence: 1000},
		CustomStatus: map[string]any{"percent": 60, "step": "pack"},
	})
	fmt.Println(err)
	// Output:
	// [{"specversion":"1.0","type":"durable.status.v1","source":"/hubs/orders/shipping","subject":"order-4711","id":"orders/order-4711/1795329321692/progress/1000","time":"2026-11-22T06:35:22Z","datacontenttype":"application/json","data":{"hub":"orders","instanceId":"order-4711","generation":1795329321692,"sequence":1000,"kind":"progress","customStatus":{"percent":60,"step":"pack"},"lastUpdatedTime":"2026-11-22T06:35:22Z"}}]
	// <nil>
}

// A program that has a sender already lends it.
func ExampleServiceBus_sender() {
	ctx := context.Background()
	client, err := azservicebus.NewClientFromConnectionString(os.Getenv("SERVICEBUS_CONNECTION_STRING"), nil)
	if err != nil {
		return
	}
	defer client.Close(ctx)
	sender, err := client.NewSender("status", nil)
	if err != nil {
		return
	}
	publisher, err := statusrelay.NewServiceBus(statusrelay.ServiceBusOptions{Sender: sender})
	if err != nil {
		return
	}
	err = publisher.Publish(ctx, statusrelay.Update{InstanceID: "order-4711", RuntimeStatus: statusrelay.Running})
	if err != nil {
		fmt.Println(err) // try again later: what arrives twice counts once
	}
}
