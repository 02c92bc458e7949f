package main

// documents.go is vector search: texts with metadata and an embedding, each seen by its owner alone, and
// the true nearest of them. Where a provider of embeddings is configured, a text does instead of a vector.

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// document is a document as its owner sees it.
type document struct {
	ID        int64           `json:"id" example:"42"`
	Content   string          `json:"content" example:"Ada wrote the first program."`
	Metadata  json.RawMessage `json:"metadata" example:"{\"lang\":\"en\"}"`
	Embedding vector          `json:"embedding,omitempty" doc:"Only with include=embedding; as stored, in half precision."`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

func (d document) location() string { return fmt.Sprintf("/documents/%d", d.ID) }

// appendJSON appends d to b as encoding/json would write it, but for white space: at a third of the cost, as what
// PostgreSQL has written as JSON is not read again, and vectors and times make no garbage.
func (d document) appendJSON(b []byte) []byte {
	b = strconv.AppendInt(append(b, `{"id":`...), d.ID, 10)
	b = appendText(append(b, `,"content":`...), d.Content)
	b = append(append(b, `,"metadata":`...), d.Metadata...)
	if d.Embedding != nil {
		b = append(b, `,"embedding":`...)
		for i, x := range d.Embedding {
			b = strconv.AppendFloat(append(b, "[,"[min(i, 1)]), float64(x), 'g', -1, 32)
		}
		b = append(b, ']')
	}
	b = d.CreatedAt.AppendFormat(append(b, `,"created_at":"`...), time.RFC3339Nano)
	b = d.UpdatedAt.AppendFormat(append(b, `","updated_at":"`...), time.RFC3339Nano)
	return append(b, `"}`...)
}

// appendText appends a JSON string.
func appendText(b []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c == '"' || c == '\\' {
			literal, _ := json.Marshal(text) // a string always encodes
			return append(b, literal...)
		}
	}
	return append(append(append(b, '"'), text...), '"')
}

// documents is a list of documents.
type documents []document

func (list documents) appendJSON(b []byte) []byte {
	b = append(b, '[')
	for i := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = list[i].appendJSON(b)
	}
	return append(b, ']')
}

// batch is several documents.
type batch struct {
	Documents documents `json:"documents"`
}

// created is the answer to POST /documents: a document for one, a batch for several.
type created struct {
	*document
	*batch
}

func (c created) appendJSON(b []byte) []byte {
	if c.document != nil {
		return c.document.appendJSON(b)
	}
	return append(c.Documents.appendJSON(append(b, `{"documents":`...)), '}')
}

func (c created) location() string {
	if c.document == nil {
		return ""
	}
	return c.document.location()
}

type documentInput struct {
	Content   string     `json:"content" min:"1" max:"65536" example:"Ada wrote the first program."`
	Metadata  jsonObject `json:"metadata" max:"16384" doc:"Any object, of at most 16 KiB; {} unless told." example:"{\"lang\":\"en\"}"`
	Embedding vector     `json:"embedding" doc:"Required unless the service has a provider of embeddings."`
}

// createDocumentsInput has one document or a batch, which one call of a provider embeds.
type createDocumentsInput struct {
	documentInput
	Documents []documentInput `json:"documents" min:"1" max:"500" alone:"true" doc:"Several, all or nothing."`
	Include   *string         `query:"include" enum:"embedding" doc:"Show the embeddings too."`
}

// createDocuments stores one document or a batch, all or nothing.
func (s *server) createDocuments(ctx context.Context, c *caller, in createDocumentsInput) (created, error) {
	list, path := in.Documents, func(i int) []any { return []any{"body", "documents", i, "embedding"} }
	if list == nil {
		list, path = []documentInput{in.documentInput}, func(int) []any { return []any{"body", "embedding"} }
	}
	var texts []string
	var missing []*vector
	for i := range list {
		if list[i].Embedding == nil {
			if s.embedder == nil {
				return created{}, embeddingRequired(path(i)...)
			}
			texts, missing = append(texts, list[i].Content), append(missing, &list[i].Embedding)
		}
	}
	if texts != nil {
		vectors, err := s.embedder.embed(ctx, texts)
		if err != nil {
			return created{}, err
		}
		for i, v := range vectors {
			*missing[i] = v
		}
	}
	docs, err := s.store.createDocuments(c.ticket, list, in.Include != nil)
	switch {
	case err != nil:
		return created{}, ownGone(err)
	case in.Documents == nil:
		return created{document: &docs[0]}, nil
	}
	return created{batch: &batch{docs}}, nil
}

// embeddingRequired is errEmbeddingRequired at a place of the request.
func embeddingRequired(loc ...any) *problem {
	p := *errEmbeddingRequired
	p.errors = []fieldError{{loc, "is required here", "missing"}}
	return &p
}

type listDocumentsInput struct {
	Limit   int64      `query:"limit" min:"1" max:"100" default:"100"`
	After   *int64     `query:"after" min:"1" doc:"Only ids above this one: the next page, at the same cost however deep."`
	Filter  jsonObject `query:"filter" max:"1024" doc:"A JSON object, of at most 1 KiB, that the metadata must contain, as PostgreSQL's @> has it." example:"{\"lang\":\"en\"}"`
	Include *string    `query:"include" enum:"embedding" doc:"Show the embeddings too."`
}

// listDocuments returns a page of the caller's documents in the order of ids.
func (s *server) listDocuments(_ context.Context, c *caller, in listDocumentsInput) (page[documents], error) {
	list, err := s.store.listDocuments(c.ID, in)
	return pageOf(documents(list), in.Limit, func(d document) int64 { return d.ID }), err
}

type documentIDInput struct {
	ID      int64   `path:"id" min:"1"`
	Include *string `query:"include" enum:"embedding" doc:"Show the embedding too."`
}

func (s *server) getDocument(_ context.Context, c *caller, in documentIDInput) (document, error) {
	return s.store.getDocument(c.ID, in.ID, in.Include != nil)
}

type updateDocumentInput struct {
	ID        int64      `path:"id" min:"1"`
	Content   *string    `json:"content" min:"1" max:"65536" doc:"Embedded anew; without a provider, an embedding must come with it." example:"Ada wrote the first program."`
	Metadata  jsonObject `json:"metadata" max:"16384" doc:"Replaces the whole object." example:"{\"lang\":\"en\"}"`
	Embedding vector     `json:"embedding"`
	Include   *string    `query:"include" enum:"embedding" doc:"Show the embedding too."`
}

// updateDocument changes what is given. A vector never silently belongs to another text: new content takes
// a new embedding, and both are stored by one statement.
func (s *server) updateDocument(ctx context.Context, c *caller, in updateDocumentInput) (document, error) {
	if in.Content == nil && in.Metadata == nil && in.Embedding == nil {
		return s.store.getDocument(c.ID, in.ID, in.Include != nil)
	}
	if in.Content != nil && in.Embedding == nil {
		if s.embedder == nil {
			return document{}, embeddingRequired("body", "embedding")
		}
		if _, err := s.store.getDocument(c.ID, in.ID, false); err != nil {
			return document{}, err // nobody pays for the embedding of what is not there
		}
		vectors, err := s.embedder.embed(ctx, []string{*in.Content})
		if err != nil {
			return document{}, err
		}
		in.Embedding = vectors[0]
	}
	return s.store.updateDocument(c.ID, in)
}

func (s *server) deleteDocument(_ context.Context, c *caller, in idInput) (none, error) {
	return none{}, s.store.deleteDocument(c.ID, in.ID)
}

// maxWords bounds what ranking costs: it compares the places of each word with those of each other.
const maxWords = 64

type searchInput struct {
	Embedding vector     `json:"embedding" doc:"Where to look, compared in half precision, as what is stored; or a query, for the service's provider of embeddings."`
	Query     *string    `json:"query" min:"1" max:"8192" doc:"A text to look for. For modes text and hybrid: at most 64 words, as in web searches with quotes, OR and -." example:"who wrote the first program?"`
	Mode      string     `json:"mode" enum:"vector,text,hybrid" default:"vector" doc:"By meaning, by words, or both fused by rank."`
	Limit     int64      `json:"limit" min:"1" max:"100" default:"10"`
	Filter    jsonObject `json:"filter" max:"1024" doc:"An object, of at most 1 KiB, that the metadata must contain, as PostgreSQL's @> has it." example:"{\"lang\":\"en\"}"`
	MinScore  *float64   `json:"min_score" min:"-1" max:"1" doc:"For mode vector: only scores from this one up."`
	Include   *string    `query:"include" enum:"embedding" doc:"Show the embeddings too."`
}

// found is a document with how well it fits.
type found struct {
	Document document `json:"document"`
	Score    float64  `json:"score" example:"0.87" doc:"The higher the better: 1 - distance in mode vector, the rank of ts_rank in mode text, the sum of 1/(60 + place) in mode hybrid."`
	Distance *float64 `json:"distance,omitempty" example:"0.13" doc:"The cosine distance, in mode vector."`
}

type searchResult struct {
	Mode    string  `json:"mode" example:"vector" doc:"The mode that ran."`
	Results []found `json:"results" doc:"The best first, equals by id."`
}

func (r searchResult) appendJSON(b []byte) []byte {
	b = append(append(append(b, `{"mode":"`...), r.Mode...), `","results":[`...)
	for i := range r.Results {
		f := &r.Results[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = f.Document.appendJSON(append(b, `{"document":`...))
		b = strconv.AppendFloat(append(b, `,"score":`...), f.Score, 'g', -1, 64)
		if f.Distance != nil {
			b = strconv.AppendFloat(append(b, `,"distance":`...), *f.Distance, 'g', -1, 64)
		}
		b = append(b, '}')
	}
	return append(b, "]}"...)
}

// search returns the documents of the caller that fit best: min(limit, all that match), always.
func (s *server) search(ctx context.Context, c *caller, in searchInput) (searchResult, error) {
	refuse := func(field, why string) (searchResult, error) {
		return searchResult{}, invalid(fieldError{[]any{"body", field}, why, "value_error"})
	}
	switch {
	case in.Query == nil && in.Mode != "vector":
		return refuse("query", "is required in this mode")
	case in.Embedding != nil && (in.Mode == "text" || in.Mode == "vector" && in.Query != nil):
		return refuse("embedding", "cannot be combined with a query in mode vector, and has no use in mode text")
	case in.MinScore != nil && in.Mode != "vector":
		return refuse("min_score", "has no meaning in this mode")
	case in.Mode != "vector" && len(strings.Fields(*in.Query)) > maxWords:
		return refuse("query", fmt.Sprintf("must have at most %d words in this mode", maxWords))
	}
	if in.Mode != "text" && in.Embedding == nil {
		if in.Query == nil || s.embedder == nil {
			return searchResult{}, embeddingRequired("body", "embedding")
		}
		vectors, err := s.embedder.embed(ctx, []string{*in.Query})
		if err != nil {
			return searchResult{}, err
		}
		in.Embedding = vectors[0]
	}
	results, err := s.store.search(c.ticket, in, s.cfg.TextSearch)
	if err == nil && len(results) == 0 { // there are none, or the session has ended
		err = s.authenticate(c)
	}
	if in.MinScore != nil {
		results = slices.DeleteFunc(results, func(f found) bool { return f.Score < *in.MinScore })
	}
	return searchResult{in.Mode, results}, err
}

// wordsOf is a query without the signs that PostgreSQL's parser chokes on: tags, words of over 100 characters, which
// documents do not have either, and each - that no word or quote follows, of which it stacks 32.
func wordsOf(query string) string {
	text, run := []rune(strings.ReplaceAll(query, "<", " ")), 0
	var b strings.Builder
	for i, r := range text {
		if unicode.IsSpace(r) {
			run = 0
		} else if run++; run > 100 {
			b.WriteByte(' ')
			run = 1
		}
		followed := i+1 < len(text) && (unicode.IsLetter(text[i+1]) || unicode.IsDigit(text[i+1]) || text[i+1] == '"')
		if r != '-' || followed {
			b.WriteRune(r)
		}
	}
	return b.String()
}
