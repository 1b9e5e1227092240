package devbus_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"statusrelay/internal/devbus"
)

// rich has everything that a sender can say.
func rich() *amqp.Message {
	return &amqp.Message{
		Header:              &amqp.MessageHeader{Durable: true, Priority: 7, TTL: time.Minute, FirstAcquirer: true, DeliveryCount: 3},
		DeliveryAnnotations: amqp.Annotations{"d": "dropped"},
		Annotations:         amqp.Annotations{"a": int64(1), "list": []any{int64(1), "x"}},
		Properties: &amqp.MessageProperties{
			MessageID: "id", UserID: []byte("u"), To: ptr("t"), Subject: ptr("s"), ReplyTo: ptr("r"),
			CorrelationID: uint64(9), ContentType: ptr("ct"), ContentEncoding: ptr("ce"),
			AbsoluteExpiryTime: ptr(time.Unix(1, 0)), CreationTime: ptr(time.Unix(2, 0)), GroupID: ptr("g"),
			GroupSequence: ptr(uint32(4)), ReplyToGroupID: ptr("rg"),
		},
		ApplicationProperties: map[string]any{"symbol": amqp.Symbol("s"), "uuid": amqp.UUID{1}, "null": nil},
		Data:                  [][]byte{[]byte("one"), []byte("two")},
		Footer:                amqp.Annotations{"f": "foot"},
	}
}

func TestMessagePassesThroughUnchanged(t *testing.T) {
	raw, err := rich().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := devbus.Redeliver(raw)
	if err != nil {
		t.Fatal(err)
	}
	var m amqp.Message
	if err := m.UnmarshalBinary(out); err != nil {
		t.Fatal(err)
	}
	if m.Header.DeliveryCount != 0 || !m.Header.Durable || m.Header.Priority != 7 || m.Header.TTL != time.Minute {
		t.Errorf("header %+v", m.Header)
	}
	if m.Annotations["a"] != int64(1) || m.Annotations["list"] == nil || m.DeliveryAnnotations["d"] != nil {
		t.Errorf("annotations %v, %v", m.Annotations, m.DeliveryAnnotations)
	}
	if !bytes.Contains(out, []byte("\xa1\x06symbol\xa3\x01s")) {
		t.Error("a symbol among the application properties became something else")
	}
	// From the properties on, the bytes are the sender's.
	for _, section := range []func(*amqp.Message){
		func(m *amqp.Message) { m.Properties = rich().Properties },
		func(m *amqp.Message) { m.Data, m.Footer = rich().Data, rich().Footer },
	} {
		only := &amqp.Message{}
		section(only)
		want, err := only.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(out, want) {
			t.Errorf("% x\nis not in\n% x", want, out)
		}
	}
}

// FuzzMessage: what the bus takes from one client, every other client can read.
func FuzzMessage(f *testing.F) {
	value := &amqp.Message{Value: map[string]any{"a": []any{int64(1), []string{"b"}}, "u": []amqp.UUID{{1}}}}
	for _, m := range []*amqp.Message{rich(), value, {Sequence: [][]any{{"a"}, {int32(1)}}}} {
		raw, err := m.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		out, err := devbus.Redeliver(raw)
		if err != nil {
			return
		}
		var m amqp.Message
		if err := m.UnmarshalBinary(out); err != nil {
			if !clientsOwnLimit(err) {
				t.Errorf("% x: %v", out, err)
			}
			return
		}
		if m.Header == nil || m.Properties == nil || m.Properties.MessageID == nil {
			t.Errorf("% x: a section is missing", out)
		}
	})
}

// clientsOwnLimit is true for what is AMQP and go-amqp does not have.
func clientsOwnLimit(err error) bool {
	for _, part := range []string{"decimal", "char", "not implemented"} {
		if strings.Contains(err.Error(), part) {
			return true
		}
	}
	return false
}
