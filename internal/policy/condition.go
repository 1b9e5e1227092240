package policy

import (
	"errors"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
)

// maxCost bounds one evaluation, in CEL's units of cost: about one for each
// step, ten for each hundred bytes of text looked at. A search in a list of a
// thousand roles stays far below. Unlike a deadline it decides the same on a
// busy machine as on an idle one.
const maxCost = 50_000

// errUndecided says that the answer hangs on a label of which publishers gave
// two values.
var errUndecided = errors.New("depends on a label with two values")

// condition is a compiled CEL expression over claims and labels.
type condition struct {
	source  string
	program cel.Program
}

// conditions returns the CEL that conditions are written in: the standard
// definitions and macros, the extended string functions, claims and labels.
func conditions() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("labels", cel.MapType(cel.StringType, cel.StringType)),
		ext.Strings(),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateRegexLiterals(),
			cel.ValidateComprehensionNestingLimit(2),
		),
	)
}

// compile makes a program of a checked expression.
func compile(env *cel.Env, source string, ast *cel.Ast) (*condition, error) {
	program, err := env.Program(ast,
		// Partial evaluation takes effect only for those inputs that holds gives
		// unknowns with.
		cel.EvalOptions(cel.OptOptimize, cel.OptPartialEval),
		cel.OptimizeRegex(interpreter.MatchesRegexOptimization),
		cel.CostLimit(maxCost),
	)
	if err != nil {
		return nil, err
	}
	return &condition{source, program}, nil
}

// holds evaluates the condition; whatever goes wrong on the way, it does not
// hold, and the error says why. The labels in conflict are unknowns (CEL
// specification, "Partial state"): the condition holds only if it does for
// every value that they could have, their absence included.
func (c *condition) holds(claims map[string]any, labels map[string]string, conflicts []string) (bool, error) {
	var input any = &subject{claims, labels}
	if len(conflicts) > 0 {
		unknowns := make([]*cel.AttributePatternType, len(conflicts))
		for i, name := range conflicts {
			unknowns[i] = cel.AttributePattern("labels").QualString(name)
		}
		partial, err := cel.PartialVars(input, unknowns...)
		if err != nil {
			return false, err
		}
		input = partial
	}
	out, _, err := c.program.Eval(input)
	if err != nil {
		return false, err
	}
	if types.IsUnknown(out) {
		return false, errUndecided
	}
	return out == types.True, nil
}

// could reports whether the condition holds for some labels, as far as claims tell. What
// is an error whatever the labels are holds for none.
func (c *condition) could(claims map[string]any) bool {
	input, err := cel.PartialVars(&subject{claims, nil}, cel.AttributePattern("labels"))
	if err != nil {
		return true
	}
	out, _, err := c.program.Eval(input)
	return err == nil && (out == types.True || types.IsUnknown(out))
}

// subject is the input of an evaluation (interpreter.Activation).
type subject struct {
	claims map[string]any
	labels map[string]string
}

func (s *subject) ResolveName(name string) (any, bool) {
	switch name {
	case "claims":
		return s.claims, true
	case "labels":
		return s.labels, true
	}
	return nil, false
}

func (s *subject) Parent() interpreter.Activation { return nil }
