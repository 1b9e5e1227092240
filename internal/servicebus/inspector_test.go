package servicebus_test

import (
	"errors"
	"strings"
	"testing"

	"statusrelay/internal/devbus"
	"statusrelay/internal/servicebus"
)

func TestEndpointIsWhereTheNamespaceIs(t *testing.T) {
	const key = ";SharedAccessKeyName=n;SharedAccessKey=k="
	for _, c := range []struct {
		o    servicebus.Options
		want servicebus.Endpoint
	}{
		{servicebus.Options{ConnectionString: "Endpoint=sb://ns.servicebus.windows.net/" + key}, servicebus.Endpoint{Host: "ns.servicebus.windows.net", Port: "5671", TLS: true}},
		{servicebus.Options{ConnectionString: "endpoint=sb://localhost;ENTITYPATH=t" + key + ";UseDevelopmentEmulator=True;"}, servicebus.Endpoint{Host: "localhost", Port: "5672", Entity: "t"}},
		{servicebus.Options{ConnectionString: "Endpoint=sb://[::1]:99" + key}, servicebus.Endpoint{Host: "::1", Port: "99", TLS: true}},
		{servicebus.Options{Namespace: "ns.servicebus.windows.net"}, servicebus.Endpoint{Host: "ns.servicebus.windows.net", Port: "5671", TLS: true}},
	} {
		if got, err := c.o.Endpoint(); err != nil || got != c.want {
			t.Errorf("got %+v, %v; want %+v", got, err, c.want)
		}
	}
}

func TestInspectorChecksItsOptions(t *testing.T) {
	good := servicebus.Options{ConnectionString: devbus.ConnectionString("127.0.0.1:1"), Topic: topic}
	for what, change := range map[string]func(*servicebus.Options){
		"ConnectionString": func(o *servicebus.Options) { o.ConnectionString = "c4n4ry" },
		"Topic":            func(o *servicebus.Options) { o.Topic = "" },
		"Management":       func(o *servicebus.Options) { o.Management = "ftp://a" },
	} {
		o := good
		change(&o)
		if _, err := servicebus.NewInspector(o); err == nil || !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if _, err := servicebus.NewInspector(good); err != nil {
		t.Error(err)
	}
}

// An identity that is not there is a credential that is not accepted.
func TestMissingIdentityIsAMissingCredential(t *testing.T) {
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential") // asks no service for one
	inWorld(t, devbus.Options{}, func(w *world) {
		i, err := servicebus.NewInspector(servicebus.Options{Namespace: "ns.example", Topic: topic, NewConn: w.dial})
		if err != nil {
			t.Fatal(err)
		}
		if err := i.MaySend(w.ctx); !errors.Is(err, servicebus.ErrCredential) {
			t.Errorf("sending: got %v", err)
		}
		if _, err := i.Topic(w.ctx); !errors.Is(err, servicebus.ErrCredential) {
			t.Errorf("managing: got %v", err)
		}
	})
}
