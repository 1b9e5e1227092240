package wire

import (
	"bytes"
	"strconv"
	"time"
	"unicode/utf8"

	"statusrelay/internal/status"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The functions here take JSON values that a jsontext.Decoder has accepted.

// canonicalForm orders names as RFC 8785 does and leaves numbers alone: a 64-bit
// integer must not lose its last digits. What it need not check was checked.
var canonicalForm = json.JoinOptions(
	jsontext.ReorderRawObjects(true),
	jsontext.AllowDuplicateNames(true),
	jsontext.AllowInvalidUTF8(true),
)

// canonical returns a copy of a value without white space, with names in order
// and strings in their shortest form.
func canonical(raw []byte, s shape) []byte {
	if s.canonical {
		return bytes.Clone(raw)
	}
	v, err := jsontext.AppendFormat(nil, raw, canonicalForm)
	if err != nil {
		panic("wire: a value that was read cannot be written: " + err.Error())
	}
	return v
}

// shape is what can be seen of a value in one pass over its bytes.
type shape struct {
	// depth counts the objects and arrays that lie within each other: 0 for a
	// scalar, 1 for {} and [], 2 for [[]].
	depth int
	// doubles: all numbers lie in the range of a double.
	doubles bool
	// canonical: the value is in canonical form, as Encode and many publishers
	// write it. False also means that this pass cannot tell.
	canonical bool
}

func inspect(raw []byte) shape {
	s := shape{doubles: true, canonical: true}
	switch raw[0] {
	case '{', '[':
		return inspectNested(raw)
	case '"':
		s.canonical = bytes.IndexByte(raw, '\\') < 0
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		s.doubles = isDouble(raw)
	}
	return s
}

func inspectNested(raw []byte) shape {
	s := shape{doubles: true, canonical: true}
	var names [status.MaxDepth + 1][]byte // the last name of each open object
	level := 0
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; c {
		case '"':
			end, plain := stringEnd(raw, i)
			isName := end+1 < len(raw) && raw[end+1] == ':'
			if !plain {
				s.canonical = false
			} else if isName && s.canonical {
				// RFC 8785 orders names by UTF-16, which is the order of
				// the bytes while they are ASCII.
				name := raw[i+1 : end]
				s.canonical = isASCII(name) && (names[level] == nil || bytes.Compare(names[level], name) < 0)
				names[level] = name
			}
			i = end
		case '{', '[':
			level++
			s.depth = max(s.depth, level)
			if level > status.MaxDepth {
				s.canonical = false
			} else {
				names[level] = nil
			}
		case '}', ']':
			level--
		case ' ', '\t', '\r', '\n':
			s.canonical = false
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			start := i
			for i+1 < len(raw) && inNumber(raw[i+1]) {
				i++
			}
			if !isDouble(raw[start : i+1]) {
				s.doubles = false
				return s
			}
		}
	}
	return s
}

// stringEnd returns the index of the quote that ends the string that starts at
// start, and whether nothing in it is escaped.
func stringEnd(raw []byte, start int) (end int, plain bool) {
	plain = true
	for i := start + 1; ; i++ {
		switch raw[i] {
		case '"':
			return i, plain
		case '\\':
			plain = false
			i++
		}
	}
}

func isASCII(text []byte) bool {
	for _, c := range text {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func inNumber(c byte) bool {
	switch c {
	case '+', '-', '.', 'e', 'E':
		return true
	}
	return '0' <= c && c <= '9'
}

func isDouble(number []byte) bool {
	if len(number) < len("1e309") || len(number) <= 308 && bytes.IndexByte(number, 'e') < 0 && bytes.IndexByte(number, 'E') < 0 {
		return true
	}
	_, err := strconv.ParseFloat(string(number), 64)
	return err == nil
}

// unquote returns the text of a string; without escapes, a part of it.
func unquote(raw []byte) []byte {
	if inner := raw[1 : len(raw)-1]; bytes.IndexByte(inner, '\\') < 0 {
		return inner
	}
	text, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		panic("wire: a string that was read cannot be unquoted: " + err.Error())
	}
	return text
}

// parseInteger reads a number whose value is an integer of at most 16 digits. As
// in JSON Schema that is a matter of value and not of spelling: 1.0 and 1e3 are
// integers. It is exact: 9007199254740991.5 is none.
func parseInteger(raw []byte) (int64, bool) {
	const maxDigits = 16 // of 2^53-1
	if n := len(raw); n <= maxDigits {
		if v, ok := digits(raw); ok {
			return v, true
		}
	}
	number, negative := bytes.CutPrefix(raw, []byte{'-'})
	if len(number) == 0 || number[0] < '0' || number[0] > '9' {
		return 0, false // not a number at all
	}
	exponent := 0
	var err error
	if i := bytes.IndexAny(number, "eE"); i >= 0 {
		exponent, err = strconv.Atoi(string(number[i+1:]))
		number = number[:i]
	}
	whole, fraction, _ := bytes.Cut(number, []byte{'.'})
	mantissa := bytes.TrimLeft(append(bytes.Clone(whole), fraction...), "0")
	if len(mantissa) == 0 {
		return 0, true
	}
	if err != nil {
		return 0, false // an exponent that long leaves no integer in range
	}
	significant := bytes.TrimRight(mantissa, "0")
	zeros := exponent - len(fraction) + len(mantissa) - len(significant)
	if zeros < 0 || len(significant)+zeros > maxDigits {
		return 0, false
	}
	v, ok := digits(append(significant, bytes.Repeat([]byte{'0'}, zeros)...))
	if negative {
		v = -v
	}
	return v, ok
}

// digits reads at most 18 decimal digits.
func digits(text []byte) (v int64, ok bool) {
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	return v, len(text) > 0
}

// parseTime reads an RFC 3339 time with 0 to 9 decimals; without a zone it is in
// UTC. The mistake is "" if there is none.
//
// The first day of year 1 east of Greenwich and the last of year 9999 west of it are
// refused: in UTC they may lie in a year that RFC 3339 cannot write.
func parseTime(text []byte) (t time.Time, mistake string) {
	const form = "0000-00-00T00:00:00"
	const notTime = "not an RFC 3339 time with at most 9 decimals"
	if len(text) < len(form) || !matches(text[:len(form)], form) {
		return time.Time{}, notTime
	}
	year, month, day := number(text[0:4]), number(text[5:7]), number(text[8:10])
	hour, minute, second := number(text[11:13]), number(text[14:16]), number(text[17:19])
	rest := text[len(form):]

	nanos := 0
	if len(rest) > 0 && rest[0] == '.' {
		n := 1
		for n < len(rest) && '0' <= rest[n] && rest[n] <= '9' {
			n++
		}
		if n == 1 || n > 10 {
			return time.Time{}, notTime
		}
		nanos = number(rest[1:n])
		for range 10 - n {
			nanos *= 10
		}
		rest = rest[n:]
	}

	offset := 0 // minutes east of Greenwich
	switch {
	case len(rest) == 0, len(rest) == 1 && (rest[0] == 'Z' || rest[0] == 'z'):
	case matches(rest, "+00:00"), matches(rest, "-00:00"):
		h, m := number(rest[1:3]), number(rest[4:6])
		if h > 23 || m > 59 {
			return time.Time{}, notTime
		}
		offset = h*60 + m
		if rest[0] == '-' {
			offset = -offset
		}
	default:
		return time.Time{}, notTime
	}

	switch {
	case second == 60:
		return time.Time{}, "a leap second, which no clock here can represent"
	case year < 1, month < 1, month > 12, day < 1, day > daysIn(year, month), hour > 23, minute > 59, second > 59:
		return time.Time{}, "no such date and time"
	case offset > 0 && year == 1 && month == 1 && day == 1, offset < 0 && year == 9999 && month == 12 && day == 31:
		return time.Time{}, "outside the years 1 to 9999 in UTC"
	}
	t = time.Date(year, time.Month(month), day, hour, minute, second, nanos, time.UTC)
	return t.Add(-time.Duration(offset) * time.Minute), ""
}

// matches reports whether text has the form: 0 stands for a digit, T for either
// case, everything else for itself.
func matches(text []byte, form string) bool {
	if len(text) != len(form) {
		return false
	}
	for i, c := range text {
		switch f := form[i]; {
		case f == '0' && (c < '0' || c > '9'):
			return false
		case f == 'T' && c != 'T' && c != 't':
			return false
		case f != '0' && f != 'T' && c != f:
			return false
		}
	}
	return true
}

// number reads digits.
func number(text []byte) int {
	v, _ := digits(text)
	return int(v)
}

func daysIn(year, month int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// cutBytes returns at most the first n bytes of a text, ending with a whole
// character.
func cutBytes(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// cutRunes returns at most the first n characters of a text.
func cutRunes(text string, n int) string {
	for i := range text {
		if n == 0 {
			return text[:i]
		}
		n--
	}
	return text
}
