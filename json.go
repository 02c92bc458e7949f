package main

// json.go reads JSON strictly. encoding/json judges the syntax; but it matches names in any case,
// lets the last of two equal names win, ignores what follows the value, and repairs bad text. So the
// members of an object are walked here, by a walker that may rely on the syntax being valid.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
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

// members calls f with the name and the raw value of each member of object, which must be valid JSON.
// Names that repeat are passed on as often as they come. A name that is no text is passed as "".
func members(object []byte, f func(name string, raw []byte)) {
	rest := skipSpace(object[1:])
	for rest[0] != '}' {
		end := valueEnd(rest)
		name, _ := jsonString(rest[:end])
		rest = skipSpace(skipSpace(rest[end:])[1:]) // the colon
		end = valueEnd(rest)
		f(name, rest[:end])
		if rest = skipSpace(rest[end:]); rest[0] == ',' {
			rest = skipSpace(rest[1:])
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

func skipSpace(b []byte) []byte { return bytes.TrimLeft(b, jsonSpace) }

// jsonString decodes a valid JSON string literal. encoding/json would turn a lone surrogate into
// U+FFFD, and PostgreSQL cannot store U+0000: both are refused.
func jsonString(literal []byte) (text, refusal string) {
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
