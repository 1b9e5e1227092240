package servicebus

import (
	"context"
	"errors"
	"fmt"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"
)

// serverBusy is how Service Bus throttles.
const serverBusy amqp.ErrCond = "com.microsoft:server-busy"

// hasCode reports an error that the SDK gave one of the codes.
func hasCode(err error, codes ...azservicebus.Code) bool {
	var e *azservicebus.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == c {
			return true
		}
	}
	return false
}

// condition gives the AMQP condition that the broker stated, "" if none.
func condition(err error) amqp.ErrCond {
	var e *amqp.Error
	if errors.As(err, &e) {
		return e.Condition
	}
	return ""
}

func lockLost(err error) bool { return hasCode(err, azservicebus.CodeLockLost) }

// denied reports an entity that is not there, not for us, or switched off: nothing that trying again in a second changes.
func denied(err error) bool {
	switch condition(err) {
	case amqp.ErrCondNotFound, amqp.ErrCondNotAllowed, amqp.ErrCondUnauthorizedAccess, "com.microsoft:entity-disabled":
		return true
	}
	return hasCode(err, azservicebus.CodeNotFound, azservicebus.CodeUnauthorizedAccess)
}

// unauthorized reports a right that is lacking.
func unauthorized(err error) bool {
	return condition(err) == amqp.ErrCondUnauthorizedAccess || hasCode(err, azservicebus.CodeUnauthorizedAccess)
}

func tooLarge(err error) bool {
	return errors.Is(err, azservicebus.ErrMessageTooLarge) || condition(err) == amqp.ErrCondMessageSizeExceeded
}

// answered reports an error that the broker gave as its answer to one request or message, so that the line it came on works.
// An error with one of the SDK's codes does not say (it hides what it was made from), and counts as none.
func answered(err error) bool {
	var management interface{ RPCCode() int } // what the SDK makes of a $management answer
	var detached *amqp.LinkError
	switch {
	case errors.As(err, &detached), hasCode(err, azservicebus.CodeConnectionLost, azservicebus.CodeClosed):
		return false
	case errors.As(err, &management):
		return true
	}
	return condition(err) != ""
}

// explain puts what an operator can act on before an error of the SDK.
func explain(err error, entity string) error {
	switch {
	case hasCode(err, azservicebus.CodeNotFound), condition(err) == amqp.ErrCondNotFound:
		return fmt.Errorf("%s does not exist: %w", entity, err)
	case hasCode(err, azservicebus.CodeUnauthorizedAccess):
		return fmt.Errorf("no right to use %s: %w", entity, err)
	case condition(err) == "com.microsoft:entity-disabled":
		return fmt.Errorf("%s is disabled: %w", entity, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer in time: %w", entity, err)
	}
	return fmt.Errorf("%s: %w", entity, err)
}
