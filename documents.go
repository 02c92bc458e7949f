package main

// documents.go is vector search: texts with metadata and an embedding, each seen by its owner
// alone, and the exact nearest neighbours among them. Where a provider of embeddings is
// configured, a text can be sent instead of a vector.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"encoding/json/jsontext"
)

// document is a document as its owner sees it.
type document struct {
	ID        int64          `json:"id" example:"42"`
	Key       *string        `json:"key"`
	Content   string         `json:"content" example:"Ada wrote the first program."`
	Metadata  jsontext.Value `json:"metadata" example:"{\"lang\":\"en\"}"`
	Embedding vector         `json:"embedding,omitempty"`
	CreatedAt time.Time      `json:"created_at"`
	UpdatedAt time.Time      `json:"updated_at"`
}

func (d document) location() string { return fmt.Sprintf("/documents/%d", d.ID) }

// size returns the bytes of the document as JSON, or somewhat more: a control character takes six,
// a quote or a backslash two, others as in UTF-8; a number of the embedding 16, the rest 256.
func (d document) size() int {
	n := 256 + 6*len(keyText(d.Key)) + len(d.Content) + len(d.Metadata) + 16*len(d.Embedding)
	for _, c := range []byte(d.Content) {
		if c < ' ' {
			n += 5
		} else if c == '"' || c == '\\' {
			n++
		}
	}
	return n
}

type documents []document

func (list documents) size() (n int) {
	for _, d := range list {
		n += d.size()
	}
	return n
}

type batch struct {
	Documents documents `json:"documents"`
}

func (b batch) size() int        { return b.Documents.size() }
func (b batch) location() string { return "/documents" }

type documentInput struct {
	Key nullable[string] `json:"key" min:"1" max:"255"`

	Content   string     `json:"content" min:"1" max:"65536" example:"Ada wrote the first program."`
	Metadata  jsonObject `json:"metadata" max:"16384" example:"{\"lang\":\"en\"}"`
	Embedding vector     `json:"embedding"`
}

// size returns how many bytes the document has at most in an answer, with its embedding if it is
// included, and with its metadata as PostgreSQL writes them.
func (in documentInput) size(included bool) int {
	metadata, _ := checkObject(string(in.Metadata))
	n := document{Key: in.Key.Value, Content: in.Content}.size() + metadata
	if included {
		n += 16 * len(in.Embedding)
	}
	return n
}

// storeOptions say how documents are stored and returned.
type storeOptions struct {
	Upsert  bool    `query:"upsert" default:"false"`
	Include *string `query:"include" enum:"embedding"`
}

// createDocumentInput is one document, or, in the older form, several.
type createDocumentInput struct {
	documentInput
	Documents []documentInput `json:"documents" min:"1" max:"500" exclusive:"true" doc:"-"`
	storeOptions
}

// createDocument stores and returns one document, or a batch.
func (s *server) createDocument(
	ctx context.Context, c *caller, in createDocumentInput,
) (any, error) {
	if in.Documents != nil {
		return s.createDocuments(ctx, c, createDocumentsInput{in.Documents, in.storeOptions})
	}
	docs, err := s.storeDocuments(
		ctx, c, []documentInput{in.documentInput}, in.storeOptions, inBody)
	if err != nil {
		return nil, err
	}
	return &docs[0], nil
}

// inBody is the location of a document that is the body.
func inBody(int) []any { return []any{"body"} }

type createDocumentsInput struct {
	Documents []documentInput `json:"documents" min:"1" max:"500"`
	storeOptions
}

// createDocuments stores several documents, all or none.
func (s *server) createDocuments(
	ctx context.Context, c *caller, in createDocumentsInput,
) (batch, error) {
	loc := func(i int) []any { return []any{"body", "documents", i} }
	docs, err := s.storeDocuments(ctx, c, in.Documents, in.storeOptions, loc)
	return batch{docs}, err
}

// storeDocuments embeds the documents that lack an embedding, and stores all.
// loc returns the location of document i in the request.
func (s *server) storeDocuments(
	ctx context.Context, c *caller, list []documentInput, opt storeOptions, loc func(i int) []any,
) (documents, error) {
	stored, err := s.checkKeys(ctx, c, list, opt, loc)
	if err != nil {
		return nil, err
	}
	var texts []textToEmbed
	for i := range list {
		in := &list[i]
		if in.Embedding == nil {
			in.Embedding = stored[i]
		}
		if in.Embedding == nil {
			texts = append(texts, textToEmbed{in.Content, loc(i), "content", &in.Embedding})
		}
	}
	if err := s.embedder.embed(ctx, texts...); err != nil {
		return nil, err
	}
	reserve := func() error {
		size := 0
		for _, in := range list {
			size += in.size(opt.Include != nil)
		}
		return s.reserve(ctx, c, size)
	}
	docs, err := s.store.createDocuments(
		ctx, c.ID, list, opt.Upsert, opt.Include != nil, reserve)
	if errors.Is(err, errKeyTaken) {
		stored, _ := s.store.storedKeys(ctx, c.ID, list)
		err = keyTaken(loc, slices.Sorted(maps.Keys(stored))...)
	}
	return docs, authError(err)
}

// checkKeys refuses a key that several documents of list have. Where some lack an embedding, it
// saves calls to the provider: it refuses keys that are taken, or with upsert returns the stored
// embeddings of the same contents.
func (s *server) checkKeys(
	ctx context.Context, c *caller, list []documentInput, opt storeOptions, loc func(i int) []any,
) (stored map[int]vector, err error) {
	var faults []fieldError
	seen := map[string]bool{}
	needsEmbedding := false
	for i, in := range list {
		key := keyText(in.Key.Value)
		if seen[key] {
			faults = append(faults, fieldError{append(loc(i), "key"), repeated.msg, repeated.kind})
		}
		if key != "" {
			seen[key] = true
		}
		needsEmbedding = needsEmbedding || in.Embedding == nil
	}
	if faults != nil {
		return nil, invalid(faults...)
	}
	if needsEmbedding && len(seen) > 0 {
		stored, err = s.store.storedKeys(ctx, c.ID, list)
	}
	if len(stored) > 0 && !opt.Upsert {
		err = keyTaken(loc, slices.Sorted(maps.Keys(stored))...)
	}
	return stored, err
}

// keyTaken returns errKeyTaken at the keys of the documents with these indexes.
func keyTaken(loc func(i int) []any, indexes ...int) error {
	var taken []fieldError
	for _, i := range indexes {
		taken = append(taken, fieldError{append(loc(i), "key"),
			"is the key of another document", errKeyTaken.code})
	}
	return errKeyTaken.withErrors(taken...)
}

// embeddingRequired returns errEmbeddingRequired for an object, given by its location.
func embeddingRequired(object []any) *problem {
	loc := append(object, "embedding")
	return errEmbeddingRequired.withErrors(fieldError{loc, "is required here", "missing"})
}

// selection is the documents that fulfil every condition that is given.
type selection struct {
	Filter jsonObject `query:"filter" max:"1024" format:"filter" example:"{\"lang\":\"en\"}"`
	IDs    *[]int64   `query:"ids" min:"1" max:"100" itemmin:"1"`
	Keys   *[]string  `query:"keys" min:"1" max:"100" itemmin:"1" itemmax:"255"`
}

type listDocumentsInput struct {
	Limit int64  `query:"limit" min:"1" max:"100" default:"100"`
	After *int64 `query:"after" min:"1"`
	selection
	Include *string `query:"include" enum:"embedding"`
}

// listDocuments returns a page of the caller's documents in the order of ids.
func (s *server) listDocuments(
	ctx context.Context, c *caller, in listDocumentsInput,
) (page[documents], error) {
	list, more, err := s.store.listDocuments(ctx, c.ID, in)
	p := page[documents]{items: list}
	if more && len(list) > 0 {
		p.next = list[len(list)-1].ID
	}
	return p, err
}

type counted struct {
	Count int64 `json:"count" example:"3"`
}

func (s *server) countDocuments(ctx context.Context, c *caller, in selection) (counted, error) {
	n, err := s.store.countDocuments(ctx, c.ID, in)
	return counted{n}, err
}

type deleted struct {
	Deleted int64 `json:"deleted" example:"3"`
}

// deleteDocuments deletes what is selected, and refuses to without a condition.
func (s *server) deleteDocuments(ctx context.Context, c *caller, in selection) (deleted, error) {
	if in.Filter == nil && in.IDs == nil && in.Keys == nil {
		return deleted{}, invalid(fieldError{[]any{"query"},
			"must have filter, ids or keys; filter={} is for all", "missing"})
	}
	n, err := s.store.deleteDocuments(ctx, c.ID, in)
	return deleted{n}, err
}

type documentIDInput struct {
	ID      int64   `path:"id" min:"1"`
	Include *string `query:"include" enum:"embedding"`
}

func (s *server) getDocument(ctx context.Context, c *caller, in documentIDInput) (document, error) {
	return s.store.getDocument(ctx, c.ID, in.ID, in.Include != nil)
}

type updateDocumentInput struct {
	ID  int64            `path:"id" min:"1"`
	Key nullable[string] `json:"key" min:"1" max:"255"`

	Content   *string    `json:"content" min:"1" max:"65536"`
	Metadata  jsonObject `json:"metadata" max:"16384" example:"{\"lang\":\"en\"}"`
	Embedding vector     `json:"embedding"`
	Include   *string    `query:"include" enum:"embedding"`
	readOnly
}

// updateDocument changes what is given. A vector never silently belongs to another text: content
// that differs from the stored one gets a new embedding, and one statement stores both; content
// that comes with an embedding is stored with it, whatever was read before.
func (s *server) updateDocument(
	ctx context.Context, c *caller, in updateDocumentInput,
) (document, error) {
	sendsVector := in.Include != nil || in.Embedding != nil
	stored, err := s.store.getDocument(ctx, c.ID, in.ID, sendsVector)
	if err == nil {
		err = in.check(stored.ID, stored.CreatedAt, stored.UpdatedAt)
	}
	if err != nil {
		return document{}, err
	}
	changed := in.Content != nil && *in.Content != stored.Content
	if changed && slices.Equal(in.Embedding, stored.Embedding) {
		in.Embedding = nil // sent back as it was read: it belongs to the stored content
	}
	if !changed && in.Embedding == nil {
		in.Content = nil
	}
	if in.Content == nil && in.Metadata == nil && in.Embedding == nil && !in.Key.Set {
		return stored, nil
	}
	if in.Content != nil && in.Embedding == nil {
		if in.Embedding, err = s.embedField(ctx, "content", *in.Content); err != nil {
			return document{}, err
		}
	}
	changes := documentInput{Key: in.Key, Metadata: in.Metadata, Embedding: in.Embedding}
	if in.Content != nil {
		changes.Content, stored.Content = *in.Content, ""
	}
	if err := s.reserve(ctx, c, stored.size()+changes.size(true)); err != nil {
		return document{}, err
	}
	d, err := s.store.updateDocument(ctx, c.ID, in)
	switch {
	case errors.Is(err, errKeyTaken):
		err = keyTaken(inBody, 0)
	case errors.Is(err, errNotFound) && in.UpdatedAt != nil:
		if _, err = s.store.getDocument(ctx, c.ID, in.ID, false); err == nil {
			err = errStale // it is there, with another updated_at
		}
	}
	return d, err
}

// embedField returns the provider's embedding of a text in the body.
func (s *server) embedField(ctx context.Context, field, text string) (v vector, err error) {
	err = s.embedder.embed(ctx, textToEmbed{text, []any{"body"}, field, &v})
	return v, err
}

func (s *server) deleteDocument(ctx context.Context, c *caller, in idInput) (none, error) {
	return none{}, s.store.deleteDocument(ctx, c.ID, in.ID)
}

// maxWords bounds the cost of ranking: the positions of each word are compared with all others'.
const maxWords = 64

type searchInput struct {
	Embedding vector     `json:"embedding"`
	Query     *string    `json:"query" min:"1" max:"8192" example:"who wrote the first program?"`
	Mode      string     `json:"mode" enum:"vector,text,hybrid" default:"vector"`
	Limit     int64      `json:"limit" min:"1" max:"100" default:"10"`
	Filter    jsonObject `json:"filter" max:"1024" format:"filter" example:"{\"lang\":\"en\"}"`
	MinScore  *float64   `json:"min_score" min:"-1" max:"1"`
	Exact     bool       `json:"exact" default:"false" doc:"Use no index that may miss some."`
	Include   *string    `query:"include" enum:"embedding"`
}

// match is a document with its score.
type match struct {
	Document document `json:"document"`
	Score    float64  `json:"score" example:"0.87"`
	Distance *float64 `json:"distance,omitempty" example:"0.13"`
}

type searchResult struct {
	Mode    string  `json:"mode" example:"vector" doc:"The mode that ran."`
	Exact   bool    `json:"exact" example:"true" doc:"Whether these are surely the best."`
	Results []match `json:"results" doc:"The best first, equals by id."`
}

func (r searchResult) size() (n int) {
	for _, m := range r.Results {
		n += m.Document.size()
	}
	return n
}

// search returns the documents of the caller that fit best: always min(limit, all that match), and
// exactly the best, unless the operator has built an index for the caller: then most of them.
func (s *server) search(ctx context.Context, c *caller, in searchInput) (searchResult, error) {
	err := in.check()
	if err == nil && in.Mode != "text" && in.Embedding == nil {
		in.Embedding, err = s.embedField(ctx, "query", *in.Query)
	}
	if err != nil {
		return searchResult{}, err
	}
	exact := in.Exact || in.Mode != "vector" || c.EfSearch == 0
	var results []match
	if !exact {
		results, err = s.store.searchIndex(ctx, c.ID, in, c.EfSearch)
		exact = err == nil && int64(len(results)) < in.Limit // a rare filter, or deletions
	}
	if exact {
		run := s.store.runLimited(in.source())
		results, err = searchDocuments(ctx, run, c.ID, in, s.cfg.TextSearch)
	}
	if in.MinScore != nil {
		results = slices.DeleteFunc(results, func(m match) bool { return m.Score < *in.MinScore })
	}
	return searchResult{in.Mode, exact, results}, err
}

// source returns "body" where words or a filter set the cost of a search, else "": see runLimited.
func (in *searchInput) source() string {
	if in.Mode == "vector" && in.Filter == nil {
		return ""
	}
	return "body"
}

// check returns the 422 for fields that do not go together.
func (in *searchInput) check() error {
	refuse := func(field, msg string) error { return invalidField(field, "value_error", msg) }
	switch {
	case in.Query == nil && in.Mode != "vector":
		return refuse("query", "is required in this mode")
	case in.Query == nil && in.Embedding == nil:
		return embeddingRequired([]any{"body"}).withDetail(
			"Send embedding, or query where a provider of embeddings is configured.")
	case in.Embedding != nil && in.Mode == "text":
		return refuse("embedding", "has no use in mode text")
	case in.Embedding != nil && in.Mode == "vector" && in.Query != nil:
		return refuse("embedding", "cannot be combined with a query in mode vector")
	case in.MinScore != nil && in.Mode != "vector":
		return refuse("min_score", "has no meaning in this mode")
	case in.Mode != "vector" && countWords(*in.Query) > maxWords:
		return refuse("query", fmt.Sprintf("must have at most %d words in this mode", maxWords))
	}
	return nil
}

// countWords returns how many words PostgreSQL may make of a query: see search_text in schema.sql,
// which also cuts words every 100 characters.
func countWords(query string) (n int) {
	separates := func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsMark(r)
	}
	for word := range strings.FieldsFuncSeq(query, separates) {
		n += (utf8.RuneCountInString(word) + 99) / 100
	}
	return n
}

// orWord matches or as a word. PostgreSQL takes it for an operator in any case of letters.
var orWord = regexp.MustCompile(`\b(or|Or|oR)\b`)

// searchWords returns a query for websearch_to_tsquery, its required parts, and the optional rest.
// OR is an operator, but or a word: questions have it. A minus before a word or a phrase excludes
// it. Others, as in -5, become commas, which separate words: PostgreSQL's parser stacks 32 minuses.
func searchWords(query string) (whole, required, optional string) {
	text, quoted := []rune(query), false
	for i, r := range text {
		begins := i == 0 || unicode.IsSpace(text[i-1])
		excludes := begins && !quoted && i+1 < len(text) &&
			(text[i+1] == '"' || unicode.IsLetter(text[i+1]))
		if r == '"' {
			quoted = !quoted
		} else if r == '-' && !excludes {
			text[i] = ','
		}
	}
	whole = orWord.ReplaceAllString(string(text), ",$0")
	required = strings.Join(requiredPart.FindAllString(whole, -1), " ")
	return whole, required, requiredPart.ReplaceAllString(whole, " ")
}

// requiredPart matches an exclusion, or a phrase that is the whole query.
var requiredPart = regexp.MustCompile(`-("[^"]*"?|\S+)|^\s*"[^"]*"\s*$`)
