package main

// filter.go compiles filters on metadata to SQL. A filter is a JSON object that the metadata must
// contain, as @> defines it. Instead of a value it may have an object of operators, which mean what
// they mean in Mongo, Pinecone and Chroma: an array stands for its elements, also on the way to a
// value; numbers compare with numbers only, texts with texts, by code points; null is also what is
// absent; $ne, $nin and $not hold wherever their opposite does not. What the client sends becomes
// arguments of the statement, never its text.

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"encoding/json/jsontext"
	json "encoding/json/v2"
)

// filterBy returns the condition for a filter, whose values it adds to args. A statement without it
// has another text, and so a plan of its own.
func filterBy(filter jsonObject, args *[]any) string {
	c := filterCompiler{args: args}
	switch {
	case filter == nil:
		return ""
	case hasOperators(filter):
		return " AND " + c.object(nil, jsontext.Value(filter))
	}
	return " AND metadata @> " + c.arg([]byte(filter), "jsonb")
}

// hasOperators reports whether a name in valid JSON begins with $.
func hasOperators(text []byte) bool {
	dec := jsontext.NewDecoder(bytes.NewReader(text))
	for token, err := dec.ReadToken(); err == nil; token, err = dec.ReadToken() {
		in, read := dec.StackIndex(dec.StackDepth())
		isName := in == '{' && read%2 == 1 // its value follows
		if isName && strings.HasPrefix(token.String(), "$") {
			return true
		}
	}
	return false
}

// checkFilter returns a valid JSON object, and why it is no filter.
func checkFilter(object string) (same, refusal string) {
	c := filterCompiler{args: new([]any)}
	c.object(nil, jsontext.Value(object))
	return object, c.refusal
}

type filterCompiler struct {
	args    *[]any
	refusal string // the first fault; what follows is compiled, but not used
}

func (c *filterCompiler) refuse(isFault bool, msg string) {
	if isFault && c.refusal == "" {
		c.refusal = msg
	}
}

// arg adds an argument and returns its placeholder.
func (c *filterCompiler) arg(value any, sqlType string) string {
	*c.args = append(*c.args, value)
	return fmt.Sprintf("$%d::%s", len(*c.args), sqlType)
}

// object returns the condition that all members of an object hold of the value at path.
func (c *filterCompiler) object(path []string, object jsontext.Value) string {
	c.refuse(object.Kind() != '{', "must have objects around operators, for $not, and in the "+
		"arrays of $and and $or")
	var members map[string]jsontext.Value
	json.Unmarshal(object, &members)
	allOf := []string{"TRUE"}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		value, sql := members[name], ""
		inner := append(slices.Clip(path), name) // a copy: others append to path
		switch {
		case name == "$not":
			sql = "NOT " + c.object(path, value)
		case name == "$and" || name == "$or":
			sql = c.list(path, name, value)
		case strings.HasPrefix(name, "$"):
			sql = c.operator(path, name, value)
		case hasOperators(value):
			sql = c.object(inner, value)
		default:
			sql = "metadata @> " + c.arg(nest(inner, string(value)), "jsonb")
		}
		allOf = append(allOf, sql)
	}
	return "(" + strings.Join(allOf, " AND ") + ")"
}

// list returns the condition of $and or $or.
func (c *filterCompiler) list(path []string, name string, array jsontext.Value) string {
	var items []jsontext.Value // none of what is no array
	json.Unmarshal(array, &items)
	c.refuse(len(items) == 0, "must have an array of objects for "+name+", with at least one")
	var conditions []string
	for _, item := range items {
		conditions = append(conditions, c.object(path, item))
	}
	return "(" + strings.Join(conditions, strings.ToUpper(" "+name[1:]+" ")) + ")"
}

// comparisons are the operators that compare, as jsonpath writes them.
var comparisons = map[string]string{"$eq": "==", "$ne": "==", "$in": "==", "$nin": "==",
	"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}

// operator returns the condition of an operator on the value at path. A name with dots is also read
// as a path. The index finds what is equal and at most two names deep.
func (c *filterCompiler) operator(path []string, name string, operand jsontext.Value) string {
	sign, kind := comparisons[name], operand.Kind()
	values := []jsontext.Value{operand}
	c.refuse(sign == "" && name != "$exists", "must have, of the names that begin with $, only "+
		"$and, $eq, $exists, $gt, $gte, $in, $lt, $lte, $ne, $nin, $not and $or")
	c.refuse(path == nil, "must have "+name+" in the object of a name")
	paths := [][]string{path}
	if split := strings.Split(strings.Join(path, "."), "."); len(split) > len(path) {
		paths = append(paths, split)
	}
	not := ""
	if name == "$ne" || name == "$nin" || name == "$exists" && kind == 'f' {
		not = "NOT "
	}
	switch name {
	case "$exists":
		c.refuse(kind != 't' && kind != 'f', "must have true or false for $exists")
		return not + c.exists("", nil, paths...)
	case "$in", "$nin":
		c.refuse(kind != '[', "must have an array for "+name)
		json.Unmarshal(operand, &values)
	}
	var anyOf []string
	for _, v := range values {
		c.refuse(v.Kind() == '{' || v.Kind() == '[' || v.Kind() == 'n' && sign != "==",
			"must have texts, numbers and booleans to compare with; null for $eq, $ne, $in, $nin")
		if v.Kind() == 'n' {
			anyOf = append(anyOf, "NOT "+c.exists("", nil, paths...))
		}
	}
	objects := []string{} // that contain one of values where the index finds it
	for _, path := range paths {
		if sign == "==" && len(path) <= 2 {
			for _, v := range values {
				objects = append(objects, nestWithArrays(path, string(v))...)
			}
		} else {
			test := ` ? (@.type() != "array" && @ ` + sign + ` $x[*])`
			anyOf = append(anyOf, c.exists(test, values, path))
		}
	}
	if sign == "==" {
		anyOf = append(anyOf, "metadata @> ANY ("+c.arg(objects, "jsonb[]")+")")
	}
	return not + "(" + strings.Join(anyOf, " OR ") + ")"
}

// exists returns the condition that a value at one of paths passes a jsonpath test with $x, or, for
// the test "", that there is one.
func (c *filterCompiler) exists(test string, x []jsontext.Value, paths ...[]string) string {
	var anyOf []string
	for _, path := range paths {
		jsonpath := "lax $"
		for _, name := range path {
			jsonpath += "." + quote(name)
		}
		anyOf = append(anyOf, fmt.Sprintf("jsonb_path_exists(metadata, %s, %s)",
			c.arg(jsonpath+test, "jsonpath"), c.arg(map[string]any{"x": x}, "jsonb")))
	}
	return "(" + strings.Join(anyOf, " OR ") + ")"
}

// nest returns the object that has value at path.
func nest(path []string, value string) string {
	for _, name := range slices.Backward(path) {
		value = "{" + quote(name) + ":" + value + "}"
	}
	return value
}

// nestWithArrays returns that object, and those in which value, or an object on the way, is in an
// array: 2^n for n names.
func nestWithArrays(path []string, value string) (objects []string) {
	if len(path) == 0 {
		return []string{value}
	}
	for _, v := range nestWithArrays(path[1:], value) {
		objects = append(objects, nest(path[:1], v), nest(path[:1], "["+v+"]"))
	}
	return objects
}

// quote returns a text as JSON.
func quote(text string) string {
	quoted, _ := jsontext.AppendQuote(nil, text)
	return string(quoted)
}
