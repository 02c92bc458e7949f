package main

// json.go reads JSON strictly (RFC 8259), in one pass over the text. encoding/json would match names in any case,
// let the last of two equal names win, ignore what follows the value, repair bad text, and make a long array
// into garbage.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// scanner reads JSON. Where the syntax is broken it notes the place and goes to the end, so that whoever reads on finds
// nothing more.
type scanner struct {
	text  []byte
	at    int
	depth int // of the value that is being read
	fault int // the place, counted from 1; 0: none so far
}

// maxNesting is how deep values may be nested for the syntax: they are read by recursion. It is encoding/json's.
const maxNesting = 10_000

func (s *scanner) fail() {
	if s.fault == 0 {
		s.fault = s.at + 1
	}
	s.at = len(s.text)
}

// syntax is "" at the end of the text, where all of it was one value in UTF-8, else a sentence that says what is wrong.
func (s *scanner) syntax() string {
	if !utf8.Valid(s.text) {
		return "The body is not valid UTF-8."
	}
	if s.peek(); s.at < len(s.text) {
		s.fail()
	}
	if s.fault == 0 {
		return ""
	}
	return fmt.Sprintf("The body is not one valid JSON value: the error is at byte %d.", s.fault)
}

// peek passes over white space and returns the byte that comes next; 0 at the end.
func (s *scanner) peek() byte {
	for ; s.at < len(s.text); s.at++ {
		if c := s.text[s.at]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c
		}
	}
	return 0
}

// must passes over white space and c.
func (s *scanner) must(c byte) {
	if s.peek() != c {
		s.fail()
		return
	}
	s.at++
}

// value reads any value and returns its text; nil where the syntax is broken.
func (s *scanner) value() []byte {
	c := s.peek()
	start := s.at
	switch {
	case c == '{' || c == '[':
		if s.depth++; s.depth > maxNesting {
			s.fail()
		}
		for range s.items() {
		}
		s.depth--
	case c == '"':
		s.string()
	case c == '-' || isDigit(c):
		s.number()
	default:
		s.word()
	}
	if s.fault != 0 {
		return nil
	}
	return s.text[start:s.at]
}

// items reads the array or object that comes next. It yields before each of its values, which the loop may read or
// leave: the number of the value, and in an object its name as a literal. Names that repeat come as often as they stand
// there.
func (s *scanner) items() iter.Seq2[int, []byte] {
	return func(yield func(i int, name []byte) bool) {
		if s.peek() == 0 {
			return
		}
		end := s.text[s.at] + 2 // in ASCII, ] and } follow their partners at this distance
		s.at++
		if s.peek(); s.skip(end) {
			return
		}
		for i := 0; ; i++ {
			var name []byte
			if end == '}' {
				name = s.string()
				s.must(':')
			}
			if s.peek() == 0 {
				s.fail()
			}
			start := s.at
			if s.fault != 0 || !yield(i, name) {
				return
			}
			if s.at == start {
				s.value()
			}
			if s.peek(); s.skip(end) {
				return
			}
			s.must(',')
		}
	}
}

// string reads a string and returns it as it stands there, in its quotes.
func (s *scanner) string() (literal []byte) {
	s.must('"')
	start := s.at - 1
	for s.at < len(s.text) && s.text[s.at] >= ' ' {
		s.at++
		switch s.text[s.at-1] {
		case '"':
			return s.text[start:s.at]
		case '\\':
			s.escape()
		}
	}
	s.fail()
	return nil
}

// escape reads what follows a backslash.
func (s *scanner) escape() {
	rest := s.text[s.at:]
	switch {
	case len(rest) > 0 && bytes.IndexByte([]byte(`"\/bfnrt`), rest[0]) >= 0:
		s.at++
	case len(rest) > 4 && rest[0] == 'u' && isHex(rest[1]) && isHex(rest[2]) && isHex(rest[3]) && isHex(rest[4]):
		s.at += 5
	default:
		s.fail()
	}
}

// number reads a number, which begins with a digit or a minus, and returns its text; of broken syntax, a part of it.
func (s *scanner) number() (literal []byte) {
	start := s.at
	s.skip('-')
	if !s.skip('0') {
		s.digits()
	}
	if s.skip('.') {
		s.digits()
	}
	if s.skip('e') || s.skip('E') {
		if !s.skip('-') {
			s.skip('+')
		}
		s.digits()
	}
	return s.text[start:s.at]
}

// skip passes over c if it comes next.
func (s *scanner) skip(c byte) bool {
	if s.at < len(s.text) && s.text[s.at] == c {
		s.at++
		return true
	}
	return false
}

// digits passes over one digit or more.
func (s *scanner) digits() {
	start := s.at
	for s.at < len(s.text) && isDigit(s.text[s.at]) {
		s.at++
	}
	if s.at == start {
		s.fail()
	}
}

// word reads true, false or null.
func (s *scanner) word() {
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(s.text[s.at:], []byte(word)) {
			s.at += len(word)
			return
		}
	}
	s.fail()
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isHex(c byte) bool { return isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'f' }

// wholePairs matches a valid literal in which each surrogate has its partner.
var wholePairs = regexp.MustCompile(`^(?:[^\\]|\\[^u]|\\u(?:[^dD]|[dD](?:[0-7]|[89aAbB]..\\u[dD][c-fC-F])))*$`)

// jsonString decodes a valid JSON string literal. encoding/json turns a lone surrogate into U+FFFD, and PostgreSQL
// cannot store U+0000: both are refused.
func jsonString(literal []byte) (text, refusal string) {
	if bytes.IndexByte(literal, '\\') < 0 && utf8.Valid(literal) {
		return string(literal[1 : len(literal)-1]), ""
	}
	switch err := json.Unmarshal(literal, &text); {
	case err != nil:
		return "", "must be a string"
	case strings.ContainsRune(text, 0):
		return "", "must not contain U+0000"
	case strings.ContainsRune(text, utf8.RuneError) && !wholePairs.Match(literal): // the expression is slow, and U+FFFD rare
		return "", "must not contain half a surrogate pair"
	}
	return text, ""
}

// maxDepth is how deep objects and arrays may be nested in a jsonObject. PostgreSQL's parser recurses, and
// so does every client's.
const maxDepth = 32

// maxStored is how long a jsonObject may be as PostgreSQL writes it, in bytes: numbers like 1e308 swell.
const maxStored = 32 << 10

// checkTree says why the value that s, of valid syntax, comes to may not be stored as jsonb: what PostgreSQL refuses or
// changes without a word, and what not every client reads alike (RFC 8259, sections 4, 6 and 8).
//
// room is how many bytes it may still take as it is stored, with its numbers written out.
func (s *scanner) checkTree(depth int, room *int) (refusal string) {
	if *room -= 2; *room < 0 { // a comma, a colon, a bracket
		return "must have at most 32 KiB as it is stored, with its numbers written out"
	}
	switch c := s.peek(); {
	case c == '"':
		literal := s.string()
		*room -= len(literal)
		_, refusal = jsonString(literal)
		return refusal
	case c == '-' || isDigit(c):
		number := s.number()
		mantissa, exponent, _ := strings.Cut(strings.ToLower(string(number)), "e")
		zeros, _ := strconv.Atoi(exponent)
		*room -= len(mantissa) + max(zeros, -zeros)
		if x := parseFloat(number); math.IsInf(x, 0) || x == 0 && strings.ContainsAny(mantissa, "123456789") {
			return "must not hold numbers beyond the range of 64-bit floating point"
		}
		return ""
	case c != '{' && c != '[':
		s.word()
		return ""
	case depth == 0:
		return fmt.Sprintf("must be nested at most %d deep", maxDepth)
	}
	seen := map[string]bool{}
	for _, literal := range s.items() {
		if literal != nil {
			name, refusal := jsonString(literal)
			if refusal == "" && seen[name] {
				refusal = "must not hold a name twice in one object"
			}
			if refusal != "" {
				return refusal
			}
			seen[name] = true
			*room -= len(literal)
		}
		if refusal := s.checkTree(depth-1, room); refusal != "" {
			return refusal
		}
	}
	return ""
}

// The range of half precision (IEEE 754 binary16), in which vectors are stored.
const (
	maxHalf = 65504
	minHalf = 1.0 / (1 << 14) // below it, there are fewer and fewer digits
)

// vector reads an array of numbers as a vector of n dimensions, whose distances are all numbers: its norm is between
// 1e-12 and 1e12, and none is beyond half precision. A vector so short that half precision would round its numbers away
// is lengthened: the cosine knows only directions.
func (s *scanner) vector(n int) (v vector, refusal string) {
	v = make(vector, 0, n)
	count, squares, largest := 0, 0.0, 0.0
	for i := range s.items() {
		count++
		x := math.Inf(1)
		if c := s.text[s.at]; c == '-' || isDigit(c) {
			x = parseFloat(s.number())
		}
		switch {
		case refusal != "":
		case math.IsInf(x, 0):
			refusal = fmt.Sprintf("must hold only finite numbers, which element %d is not", i)
		case math.Abs(x) > maxHalf:
			refusal = fmt.Sprintf("must hold numbers from -%d to %d, the range of half precision, which element %d exceeds", maxHalf, maxHalf, i)
		case count <= n:
			v = append(v, float32(x))
		}
		squares, largest = squares+x*x, max(largest, math.Abs(x))
	}
	switch norm := math.Sqrt(squares); {
	case refusal != "":
		return nil, refusal
	case count != n:
		return nil, fmt.Sprintf("must have exactly %d numbers, but has %d", n, count)
	case norm < 1e-12 || norm > 1e12:
		return nil, "must have a norm between 1e-12 and 1e12"
	}
	if largest < minHalf {
		_, exponent := math.Frexp(largest)
		for i := range v {
			v[i] = float32(math.Ldexp(float64(v[i]), -exponent)) // by a power of two, which rounds nothing
		}
	}
	return v, ""
}

// parseFloat is strconv.ParseFloat of a JSON number, an infinity where it is out of range, at a third of the cost for a
// short one without an exponent: where a float64 holds its digits, as it does 10 to the 16th and all powers below, their
// quotient is rounded once, as it must be.
func parseFloat(number []byte) (x float64) {
	digits, point, short := 0, len(number)-1, len(number) <= 17
	for i, c := range number {
		switch {
		case isDigit(c):
			digits = digits*10 + int(c-'0')
		case c == '.':
			point = i
		case c != '-': // an exponent
			short = false
		}
	}
	if !short || digits >= 1<<53 {
		x, _ = strconv.ParseFloat(string(number), 64)
		return x
	}
	x = float64(digits) / math.Pow10(len(number)-1-point)
	if number[0] == '-' {
		x = -x
	}
	return x
}
