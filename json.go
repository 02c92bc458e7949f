package main

// json.go reads JSON strictly. encoding/json judges the syntax; but it matches names in any case,
// lets the last of two equal names win, ignores what follows the value, and repairs bad text. So the
// members of an object are walked here, by a walker that may rely on the syntax being valid.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

const jsonSpace = " \t\r\n"

// checkJSON tells whether body is exactly one JSON value in UTF-8, and returns it without the
// white space around it; otherwise a sentence that says what is wrong.
func checkJSON(body []byte) (value []byte, syntax string) {
	if !utf8.Valid(body) {
		return nil, "The body is not valid UTF-8."
	}
	if !json.Valid(body) {
		var at *json.SyntaxError
		if err := json.Unmarshal(body, new(json.RawMessage)); errors.As(err, &at) {
			return nil, fmt.Sprintf("The body is not one valid JSON value: the error is at byte %d.", at.Offset)
		}
		return nil, "The body is not one valid JSON value."
	}
	return bytes.Trim(body, jsonSpace), ""
}

// members yields the name, as a string literal, and the value of each member of object, which must be valid
// JSON. Names that repeat are yielded as often as they come.
func members(object []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, raw []byte) bool) {
		rest := skipSpace(object[1:])
		for rest[0] != '}' {
			end := valueEnd(rest)
			name := rest[:end]
			rest = skipSpace(skipSpace(rest[end:])[1:]) // the colon
			end = valueEnd(rest)
			if !yield(name, rest[:end]) {
				return
			}
			rest = skipComma(rest[end:])
		}
	}
}

// elements yields the values of array, which must be valid JSON.
func elements(array []byte) iter.Seq[[]byte] {
	return func(yield func(raw []byte) bool) {
		for rest := skipSpace(array[1:]); rest[0] != ']'; {
			end := valueEnd(rest)
			if !yield(rest[:end]) {
				return
			}
			rest = skipComma(rest[end:])
		}
	}
}

// valueEnd is the length of the JSON value that b, valid JSON, starts with.
func valueEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // it closes what surrounds a number, true, false or null
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return len(b)
}

func skipSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\r' || b[0] == '\n') {
		b = b[1:]
	}
	return b
}

func skipComma(b []byte) []byte {
	if b = skipSpace(b); b[0] == ',' {
		b = skipSpace(b[1:])
	}
	return b
}

// jsonString decodes a valid JSON string literal. encoding/json would turn a lone surrogate into
// U+FFFD, and PostgreSQL cannot store U+0000: both are refused.
func jsonString(literal []byte) (text, refusal string) {
	if bytes.IndexByte(literal, '\\') < 0 && utf8.Valid(literal) {
		return string(literal[1 : len(literal)-1]), ""
	}
	for i := 0; i+1 < len(literal); i++ {
		if literal[i] != '\\' {
			continue
		}
		i++
		if literal[i] != 'u' {
			continue
		}
		unit := hex4(literal[i+1:])
		i += 4
		switch {
		case unit == 0:
			return "", "must not contain U+0000"
		case unit >= 0xDC00 && unit <= 0xDFFF:
			return "", "must not contain half a surrogate pair"
		case unit >= 0xD800 && unit <= 0xDBFF:
			low := literal[i+1:]
			if len(low) < 6 || low[0] != '\\' || low[1] != 'u' || hex4(low[2:]) < 0xDC00 || hex4(low[2:]) > 0xDFFF {
				return "", "must not contain half a surrogate pair"
			}
			i += 6
		}
	}
	if err := json.Unmarshal(literal, &text); err != nil {
		return "", "must be a string"
	}
	return text, ""
}

func hex4(b []byte) uint64 {
	n, _ := strconv.ParseUint(string(b[:4]), 16, 32)
	return n
}

// maxDepth is how deep objects and arrays may be nested in a jsonObject. PostgreSQL's parser recurses, and
// so does every client's.
const maxDepth = 32

// maxStored is how long a jsonObject may be as PostgreSQL writes it, in bytes: numbers like 1e308 swell.
const maxStored = 32 << 10

// checkTree says why raw, a valid JSON value, may not be stored as jsonb: what PostgreSQL refuses or
// changes without a word, and what not every client reads alike (RFC 8259, sections 4, 6 and 8).
//
// room is how many bytes it may still take as it is stored, with its numbers written out.
func checkTree(raw []byte, depth int, room *int) (refusal string) {
	if *room -= 2; *room < 0 { // a comma, a colon, a bracket
		return "must have at most 32 KiB as it is stored, with its numbers written out"
	}
	switch raw[0] {
	case '{', '[':
		if depth == 0 {
			return fmt.Sprintf("must be nested at most %d deep", maxDepth)
		}
	case '"':
		_, refusal = jsonString(raw)
		*room -= len(raw)
		return refusal
	case 't', 'f', 'n':
		return ""
	default:
		mantissa, exponent, _ := strings.Cut(strings.ToLower(string(raw)), "e")
		zeros, _ := strconv.Atoi(exponent)
		*room -= len(mantissa) + max(zeros, -zeros)
		if x, err := strconv.ParseFloat(string(raw), 64); err != nil || x == 0 && strings.ContainsAny(mantissa, "123456789") {
			return "must not hold numbers beyond the range of 64-bit floating point"
		}
		return ""
	}
	if raw[0] == '[' {
		for element := range elements(raw) {
			if refusal := checkTree(element, depth-1, room); refusal != "" {
				return refusal
			}
		}
		return ""
	}
	seen := map[string]bool{}
	for literal, value := range members(raw) {
		name, refusal := jsonString(literal)
		if refusal == "" && seen[name] {
			refusal = "must not hold a name twice in one object"
		}
		if refusal == "" {
			refusal = checkTree(value, depth-1, room)
		}
		if refusal != "" {
			return refusal
		}
		seen[name] = true
		*room -= len(literal)
	}
	return ""
}

// The range of half precision (IEEE 754 binary16), in which vectors are stored.
const (
	maxHalf = 65504
	minHalf = 1.0 / (1 << 14) // below it, there are fewer and fewer digits
)

// parseVector reads a JSON array of numbers as a vector of n dimensions, whose distances are all
// numbers: its norm is between 1e-12 and 1e12, and none is beyond half precision. A vector so short that half precision
// would round its numbers away is lengthened: the cosine knows only directions.
func parseVector(array []byte, n int) (v vector, refusal string) {
	v = make(vector, 0, n)
	count, squares, largest := 0, 0.0, 0.0
	for element := range elements(array) {
		x, err := strconv.ParseFloat(string(element), 64)
		switch count++; {
		case err != nil:
			return nil, fmt.Sprintf("must hold only finite numbers, which element %d is not", count-1)
		case math.Abs(x) > maxHalf:
			return nil, fmt.Sprintf("must hold numbers from -%d to %d, the range of half precision, which element %d exceeds", maxHalf, maxHalf, count-1)
		case count <= n:
			v = append(v, float32(x))
		}
		squares, largest = squares+x*x, max(largest, math.Abs(x))
	}
	if count != n {
		return nil, fmt.Sprintf("must have exactly %d numbers, but has %d", n, count)
	}
	if norm := math.Sqrt(squares); norm < 1e-12 || norm > 1e12 {
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
