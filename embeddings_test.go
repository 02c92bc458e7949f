package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// provider is a server with the protocol of OpenAI's embeddings that can be told to fail.
type provider struct {
	*httptest.Server
	mu     sync.Mutex
	fail   []http.HandlerFunc // the next answers, before those of quirk and good ones
	quirk  quirk
	asked  []string    // URLs and bodies of the requests
	header http.Header // of the last request
}

// question is what a provider is asked.
type question struct {
	Model      string
	Input      []string
	Dimensions int
	Format     string `json:"encoding_format"`
}

// quirk is how a provider answers some questions; status 0 leaves one to the good provider.
type quirk func(q question) (status int, body string)

func newProvider(t *testing.T) *provider {
	p := &provider{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		p.mu.Lock()
		p.asked, p.header = append(p.asked, r.URL.String()+" "+string(body)), r.Header
		var fail http.HandlerFunc
		quirk := p.quirk
		if len(p.fail) > 0 {
			fail, p.fail = p.fail[0], p.fail[1:]
		}
		p.mu.Unlock()
		if fail != nil {
			r.Body = io.NopCloser(bytes.NewReader(body))
			fail(w, r)
			return
		}
		var q question
		json.Unmarshal(body, &q)
		if quirk != nil {
			if status, answer := quirk(q); status != 0 {
				w.WriteHeader(status)
				io.WriteString(w, answer)
				return
			}
		}
		var data []string
		for i := len(q.Input) - 1; i >= 0; i-- { // out of order: the index decides
			data = append(data, fmt.Sprintf(`{"object":"embedding","index":%d,"embedding":%s}`,
				i, fakeEmbedding(q.Input[i])))
		}
		fmt.Fprintf(w, `{"object":"list","model":"m","data":[%s],"usage":{"total_tokens":1}}`,
			strings.Join(data, ","))
	}))
	t.Cleanup(p.Close)
	return p
}

// fakeEmbedding counts the letters a, b and c: texts with the same letters have near embeddings.
func fakeEmbedding(text string) string {
	return fmt.Sprintf("[%d,%d.5,%d]",
		strings.Count(text, "a"), strings.Count(text, "b"), strings.Count(text, "c"))
}

func (p *provider) failWith(fail ...http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail, p.asked = fail, nil
}

func (p *provider) behave(as quirk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quirk, p.asked = as, nil
}

func (p *provider) calls() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.asked)
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		http.Error(w, "the provider's words", code)
	}
}

func respondWith(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
}

func TestEmbeddings(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := newApp(t, func(c *config) {
		c.EmbeddingsURL, c.EmbeddingsModel, c.EmbeddingsKey = p.URL, "small", "a canary key"
	})
	m := a.signUp("ada")
	first := a.createDocument(m.AccessToken, `{"content":"aaaa"}`)
	a.want(a.do("POST", docsPath, m.AccessToken, `{"documents":[{"content":"bbbb"},`+
		`{"content":"own","embedding":[0,0,9]},{"content":"ab"}]}`), 201, "")
	const batchRequest = `/v1/embeddings {"model":"small","input":["bbbb","ab"],"dimensions":3}`
	if p.calls() != 2 || p.asked[1] != batchRequest ||
		p.header.Get("Authorization") != "Bearer a canary key" {
		t.Errorf("a batch asked %q", p.asked)
	}
	search := func(query string) (contents string) {
		t.Helper()
		body := map[string]any{"query": query, "limit": 2}
		ans := a.want(a.do("POST", docsPath+"/search", m.AccessToken, body), 200, "")
		for _, f := range decode[searchResult](ans).Results {
			contents += f.Document.Content + "|"
		}
		return contents
	}
	if got := search("aaa"); got != "aaaa|ab|" {
		t.Errorf("near aaa: %s", got)
	}
	path := fmt.Sprintf("%s/%d", docsPath, first.ID)
	a.want(a.do("PUT", path, m.AccessToken, `{"content":"cccc"}`), 200, "")
	if got := search("ccc"); got != "own|cccc|" && got != "cccc|own|" {
		t.Errorf("new content was not embedded anew: %s", got)
	}
	before := p.calls()
	a.want(a.do("PUT", path, m.AccessToken, `{"metadata":{"x":1}}`), 200, "")
	a.want(a.do("PUT", docsPath+"/999999", m.AccessToken, `{"content":"paid for nothing"}`),
		404, "not_found")
	a.want(a.do("POST", docsPath+"/search", m.AccessToken, `{"mode":"text","query":"cccc"}`),
		200, "")
	a.want(a.do("POST", docsPath, m.AccessToken, `{"documents":[{"content":"x"},{"content":""}]}`),
		422, "invalid_request")
	if p.calls() != before {
		t.Errorf("the provider was asked without need: %q", p.asked[before:])
	}
	hybrid := `{"mode":"hybrid","query":"cccc"}`
	ans := a.want(a.do("POST", docsPath+"/search", m.AccessToken, hybrid), 200, "")
	if !strings.Contains(string(ans.body), `"mode":"hybrid"`) {
		t.Errorf("hybrid by query: %s", ans.body)
	}
}

// TestEmbeddingsOfKeys checks that the provider is asked for nothing that is stored or refused.
func TestEmbeddingsOfKeys(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := newApp(t, func(c *config) { c.EmbeddingsURL, c.EmbeddingsModel = p.URL, "small" })
	m := a.signUp("ada")
	a.createDocument(m.AccessToken, `{"key":"k","content":"aaaa"}`)
	a.createDocument(m.AccessToken, `{"key":"own","content":"b","embedding":[0,0,9]}`)
	p.behave(nil)
	a.want(a.do("POST", docsPath, m.AccessToken, `{"documents":[{"content":"new"},`+
		`{"key":"k","content":"bbbb"}]}`), 409, "key_taken")
	a.want(a.do("POST", docsPath+"?upsert=true", m.AccessToken, `{"documents":[`+
		`{"key":"k","content":"aaaa"},{"key":"own","content":"b","metadata":{"n":1}}]}`), 201, "")
	if p.calls() != 0 {
		t.Errorf("the provider was asked %q", p.asked)
	}
	ans := a.want(a.do("POST", docsPath+"?upsert=true&include=embedding", m.AccessToken,
		`{"documents":[{"key":"k","content":"cccc"},{"key":"own","content":"b"}]}`), 201, "")
	docs := decode[batch](ans).Documents
	if p.calls() != 1 || fmt.Sprint(docs[0].Embedding, docs[1].Embedding) != "[0 0.5 4] [0 0 9]" {
		t.Errorf("the provider was asked %q; stored are %s", p.asked, ans.body)
	}
}

// TestEmbeddingsFail makes the provider fail in each way. The response is a 502 or 503 with a code,
// and nothing is stored.
func TestEmbeddingsFail(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := newApp(t, func(c *config) {
		c.EmbeddingsURL, c.EmbeddingsModel, c.EmbeddingsKey = p.URL+"/v1/", "small", "a canary key"
	})
	m := a.signUp("ada")
	ok := func(embedding string) string {
		return `{"data":[{"index":0,"embedding":` + embedding + `}]}`
	}
	slow := func(w http.ResponseWriter, r *http.Request) {
		if time.Sleep(50 * time.Millisecond); r.Context().Err() == nil {
			panic(http.ErrAbortHandler) // the connection breaks
		}
	}
	type handlers = []http.HandlerFunc
	good := respondWith(ok("[1,2,3]"))
	same := func(f http.HandlerFunc) handlers { return handlers{f, f, f} }
	const unavailable, failed = "embeddings_unavailable", "embeddings_failed"
	for name, row := range map[string]struct {
		fail   handlers
		status int
		code   string
		calls  int
	}{
		"overloaded once": {handlers{status(429, "Retry-After", "0")}, 201, "", 2},
		"away once":       {handlers{status(503, "Retry-After", "0")}, 201, "", 2},
		"overloaded twice": {
			handlers{status(429, "Retry-After", "0"), status(429)}, 503, unavailable, 2,
		},
		"overloaded for long": {handlers{status(429, "Retry-After", "3600")}, 503, unavailable, 1},
		// In nanoseconds, 18446744074 s overflow 64 bits and would wrap to 0.3 s.
		"longer than a time": {
			handlers{status(429, "Retry-After", "18446744074")}, 503, unavailable, 1,
		},
		"longer than numbers": {
			handlers{status(503, "Retry-After", "99999999999999999999")}, 503, unavailable, 1,
		},
		"connection broken": {handlers{slow, slow}, 503, unavailable, 0},
		"refused key":       {handlers{status(401)}, 502, failed, 1},
		"unknown model":     {handlers{status(404)}, 502, failed, 1},
		"redirect": {
			handlers{status(307, "Location", "http://127.0.0.1:1/")}, 502, failed, 1,
		},
		// A plain text is asked for with "dimensions" and without, and the text again.
		"refuses everything":   {same(status(400)), 502, failed, 3},
		"fails at everything":  {same(status(500)), 503, unavailable, 3},
		"refuses a text twice": {handlers{status(400), good, status(400)}, 422, "text_refused", 3},
		"fails at a text":      {handlers{status(500), good, status(500)}, 422, "text_refused", 3},
		"fails once":           {handlers{status(500)}, 201, "", 3},
		"refuses once":         {handlers{status(400)}, 201, "", 3},
		"away meanwhile":       {handlers{status(400), status(502)}, 503, unavailable, 2},
		"bad gateway":          {handlers{status(502)}, 503, unavailable, 1},
		"no JSON":              {handlers{respondWith("<html>")}, 502, failed, 1},
		"endless": {
			handlers{respondWith(`{"data":[` + strings.Repeat(" ", 1<<20))}, 502, failed, 1,
		},
		"empty":    {handlers{respondWith(`{}`)}, 502, failed, 1},
		"an array": {handlers{respondWith(`[]`)}, 502, failed, 1},
		"nothing":  {handlers{respondWith(``)}, 502, failed, 1},
		"two for one": {handlers{respondWith(`{"data":[{"index":0,"embedding":[1,0,0]},` +
			`{"index":1,"embedding":[1,0,0]}]}`)}, 502, failed, 1},
		"another index": {
			handlers{respondWith(`{"data":[{"index":1,"embedding":[1,0,0]}]}`)}, 502, failed, 1,
		},
		"half an index": {
			handlers{respondWith(`{"data":[{"index":0.5,"embedding":[1,0,0]}]}`)}, 502, failed, 1,
		},
		"no embedding":       {handlers{respondWith(`{"data":[{"index":0}]}`)}, 502, failed, 1},
		"byte order mark":    {handlers{respondWith("\ufeff" + ok("[1,2,3]"))}, 201, "", 1},
		"another dimension":  {same(respondWith(ok("[1,0]"))), 502, failed, 3},
		"null embedding":     {same(respondWith(ok("null"))), 502, failed, 3},
		"base64":             {same(respondWith(ok(`"AACAPw=="`))), 502, failed, 3},
		"null number":        {same(respondWith(ok("[1,null,0]"))), 502, failed, 3},
		"infinite number":    {same(respondWith(ok("[1e999,0,0]"))), 502, failed, 3},
		"zero vector":        {same(respondWith(ok("[0,0,0]"))), 502, failed, 3},
		"number beyond half": {same(respondWith(ok("[1e6,0,0]"))), 502, failed, 3},
		"trailing data":      {handlers{respondWith(ok("[1,0,0]") + "x")}, 502, failed, 1},
	} {
		a.embedder.dimensions.Store(testDimensions)
		p.failWith(row.fail...)
		before := one[int](t, a.url, `SELECT count(*) FROM documents`)
		ans := a.do("POST", docsPath, m.AccessToken, `{"content":"aaaa"}`)
		a.want(ans, row.status, row.code)
		if strings.Contains(string(ans.body), "words") {
			t.Errorf("%s: the answer passes on what the provider said: %s", name, ans.body)
		}
		if wait := ans.header.Get("Retry-After"); name == "overloaded for long" && wait != "3600" {
			t.Errorf("%s: the client is told to wait %q s", name, wait)
		}
		stored := one[int](t, a.url, `SELECT count(*) FROM documents`) - before
		if (stored == 1) != (row.status == 201) {
			t.Errorf("%s: %d documents were stored", name, stored)
		}
		if row.calls > 0 && p.calls() != row.calls {
			t.Errorf("%s: %d calls, want %d", name, p.calls(), row.calls)
		}
		p.failWith()
	}
	p.Close()
	a.want(a.do("POST", docsPath, m.AccessToken, `{"content":"aaaa"}`), 503, unavailable)
	a.want(a.do("POST", docsPath+"/search", m.AccessToken, `{"query":"aaaa"}`), 503, unavailable)
	a.want(a.do("POST", docsPath+"/search", m.AccessToken, `{"query":"aaaa","mode":"text"}`),
		200, "")
	const logged = "nothing was stored.: POST /v1/embeddings: status 401: the provider's words"
	if !strings.Contains(suiteLog.text(), logged) {
		t.Error("the log does not tell that the provider refused the key")
	}
}

// TestEmbeddingsAtOnce sends more requests at once than the limit of concurrent provider calls.
func TestEmbeddingsAtOnce(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := newApp(t, func(c *config) {
		c.EmbeddingsURL, c.EmbeddingsModel = p.URL+"/v1/embeddings", "small"
	})
	m := a.signUp("ada")
	var current, highest atomic.Int64
	var slow []http.HandlerFunc
	for range 30 {
		slow = append(slow, func(w http.ResponseWriter, r *http.Request) {
			for n := current.Add(1); n > highest.Load(); {
				highest.Store(n)
			}
			time.Sleep(10 * time.Millisecond)
			current.Add(-1)
			io.WriteString(w, `{"data":[{"index":0,"embedding":[1,0,0]}]}`)
		})
	}
	p.failWith(slow...)
	parallel(30, func(i int) {
		a.createDocument(m.AccessToken, `{"content":"`+strconv.Itoa(i)+`"}`)
	})
	if highest.Load() > maxCalls/2 || highest.Load() < 2 {
		t.Errorf("%d calls at once, want at most %d", highest.Load(), maxCalls/2)
	}
}

// TestEmbeddingsKey checks that the key is absent from the log at the level debug.
func TestEmbeddingsKey(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) {
		c.EmbeddingsURL, c.EmbeddingsModel = "http://user:canary@127.0.0.1:1/v1", "small"
		c.EmbeddingsKey = "a canary key"
	})
	var log logBuffer
	m := a.signUp("ada")
	a.server.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a.want(a.do("POST", docsPath, m.AccessToken, `{"content":"aaaa"}`),
		503, "embeddings_unavailable")
	eventually(t, "the access line", func() bool {
		return strings.Contains(log.text(), "msg=request")
	})
	if text := log.text(); strings.Contains(text, "canary") ||
		!strings.Contains(text, "embeddings_unavailable") {
		t.Errorf("the log: %s", text)
	}
}

// refuseIf is the quirk of a provider that answers questions of a kind with a status and a message.
func refuseIf(bad func(q question) bool, status int, message string) quirk {
	return func(q question) (int, string) {
		if bad(q) {
			return status, message
		}
		return 0, ""
	}
}

func anyText(bad func(text string) bool) func(q question) bool {
	return func(q question) bool { return slices.ContainsFunc(q.Input, bad) }
}

// answerWith is the quirk of a provider that answers with data in a form of its own. The format of
// an item gets its number and the embedding.
func answerWith(item, separator string) quirk {
	return func(q question) (int, string) {
		var data []string
		for i, text := range q.Input {
			data = append(data, fmt.Sprintf(item, i, fakeEmbedding(text)))
		}
		return 200, `{"data":[` + strings.Join(data, separator) + `]}`
	}
}

// TestProviders stores 100 documents by providers that behave as known ones do.
func TestProviders(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := newApp(t, func(c *config) { c.EmbeddingsURL, c.EmbeddingsModel = p.URL, "small" })
	m := a.signUp("ada")
	more := func(n int) func(q question) bool {
		return func(q question) bool { return len(q.Input) > n }
	}
	isBad := func(text string) bool { return strings.Contains(text, "x") }
	isBlank := func(text string) bool { return strings.TrimSpace(text) == "" }
	long := func(q question) bool { return len(strings.Join(q.Input, "")) > 200 }
	indent := func(q question) (int, string) {
		_, text := answerWith(`{"index":%d,"embedding":%s}`, ",")(q)
		var indented bytes.Buffer
		json.Indent(&indented, []byte(text), "        ", "        ")
		return 200, indented.String()
	}
	texts := make([]string, 100)
	for i := range texts {
		texts[i] = "b" + strings.Repeat("a", i%7) + strings.Repeat("c", i%5)
	}
	for name, row := range map[string]struct {
		quirk  quirk
		text   string // what the document with number 50 holds, if not the same as the others
		status int
		calls  int // at most
	}{
		"good": {nil, "", 201, 4},
		"TEI": {refuseIf(more(32), 413, `{"error":"batch size 33 > maximum allowed batch size `+
			`32","error_type":"Validation"}`), "", 201, 4},
		"DashScope": {refuseIf(more(10), 400, `{"code":"InvalidParameter","message":"batch size `+
			`is invalid, it should not be larger than 10.: input.contents"}`), "", 201, 24},
		"one text a call": {refuseIf(more(1), 422, `{"detail":"one"}`), "", 201, 125},
		"OpenAI": {refuseIf(long, 400, `{"error":{"message":"Requested 400000 tokens, max `+
			`300000 tokens per request"}}`), "", 201, 20},
		"vLLM without matryoshka": {refuseIf(func(q question) bool { return q.Dimensions > 0 }, 400,
			`{"message":"Model does not support matryoshka"}`), "", 201, 15},
		"Vertex by LiteLLM": {refuseIf(func(q question) bool { return q.Format != "" }, 400,
			`{"error":{"message":"UnsupportedParamsError"}}`), "", 201, 4},
		"without index": {answerWith(`{"n":%d,"embedding":%s}`, ","), "", 201, 4},
		"index null":    {answerWith(`{"n":%d,"index":null,"embedding":%s}`, ","), "", 201, 4},
		"index 0":       {answerWith(`{"n":%d,"index":0,"embedding":%s}`, ","), "", 201, 4},
		"index 0.0":     {answerWith(`{"index":%d.0,"embedding":%s}`, ","), "", 201, 4},
		"indented":      {indent, "", 201, 4},
		"doubled index": {answerWith(`{"n":%d,"index":1,"embedding":%s}`, ","), "", 502, 3},
		"missing index": {answerWith(`{"index":1%d,"embedding":%s}`, ","), "", 502, 3},
		"OpenAI, too long a text": {refuseIf(anyText(isBad), 400, `{"error":{"message":"This `+
			`model's maximum context length is 8192 tokens"}}`), "x", 422, 20},
		"Ollama, too long a text": {refuseIf(anyText(isBad), 400,
			`{"error":"the input length exceeds the context length"}`), "aax", 422, 20},
		"llama.cpp, too long a text": {refuseIf(anyText(isBad), 500, `{"error":{"message":`+
			`"input is too large to process. increase the physical batch size"}}`), "x", 422, 20},
		"Ollama, no number": {refuseIf(anyText(isBad), 500, `{"error":"failed to encode `+
			`response: json: unsupported value: NaN"}`), "x", 422, 20},
		"Cohere, white space": {refuseIf(anyText(isBlank), 400, `{"message":"empty"}`),
			" \n ", 422, 20},
		"null numbers": {refuseIf(anyText(isBad), 200, `{"data":[{"embedding":[null]}]}`),
			"x", 422, 20},
		"zero vector": {refuseIf(anyText(isBad), 200, `{"data":[{"embedding":[0,0,0]}]}`),
			"x", 422, 20},
		"wrong key":      {refuseIf(more(0), 400, `{"error":"API key not valid"}`), "", 502, 8},
		"another length": {answerWith(`{"index":%d,"embedding":[%s,1]}`, ","), "", 502, 8},
	} {
		a.embedder.dimensions.Store(testDimensions)
		p.behave(row.quirk)
		var docs []map[string]string
		for i, text := range texts {
			if i == 50 && row.text != "" {
				text = row.text
			}
			docs = append(docs, map[string]string{"content": text})
		}
		before := one[int](t, a.url, `SELECT count(*) FROM documents`)
		ans := a.do("POST", docsPath+"/batch?include=embedding", m.AccessToken,
			map[string]any{"documents": docs})
		stored := one[int](t, a.url, `SELECT count(*) FROM documents`) - before
		if ans.status != row.status || stored != map[int]int{201: 100}[ans.status] ||
			p.calls() > row.calls {
			t.Errorf("%s: status %d, %d stored, %d calls, want %d and at most %d calls: %s", name,
				ans.status, stored, p.calls(), row.status, row.calls, ans.body)
		}
		for i, d := range decode[batch](ans).Documents {
			var want vector
			json.Unmarshal([]byte(fakeEmbedding(d.Content)), &want)
			if d.Content != texts[i] || !slices.Equal(d.Embedding, want) {
				t.Errorf("%s: document %d is %q with %v", name, i, d.Content, d.Embedding)
			}
		}
		place := `"loc":["body","documents",50,"content"]`
		if row.status == 422 && !strings.Contains(string(ans.body), place) {
			t.Errorf("%s: the place is not told: %s", name, ans.body)
		}
	}
}

// embedTexts returns the vectors of texts that have no place in a request.
func embedTexts(ctx context.Context, e *embedder, texts []string) ([]vector, error) {
	vectors := make([]vector, len(texts))
	var list []textToEmbed
	for i, text := range texts {
		list = append(list, textToEmbed{text: text, vector: &vectors[i]})
	}
	err := e.embed(ctx, list...)
	return vectors, err
}

// TestLongAnswers reads numbers with all their digits, each in a line of its own.
func TestLongAnswers(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	e := newEmbedder(&config{EmbeddingsURL: p.URL, EmbeddingDimensions: 1000, EmbeddingsBatch: 32,
		EmbeddingsLoad: 60})
	p.behave(func(q question) (int, string) {
		number := "\n" + strings.Repeat(" ", 32) + "-1.2345678901234567e-05"
		numbers := number + strings.Repeat(","+number, 999)
		return answerWith(`{"n":%d,"was":%s,"embedding":[`+numbers+`]}`, ",")(q)
	})
	vectors, err := embedTexts(t.Context(), e, make([]string, 32))
	if err != nil || len(vectors) != 32 || len(vectors[31]) != 1000 {
		t.Errorf("a long answer: %d vectors, %v", len(vectors), err)
	}
}

// TestRateLimit stores a batch although the provider refuses the first calls for a moment.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	e := newEmbedder(&config{EmbeddingsURL: p.URL, EmbeddingDimensions: 3, EmbeddingsBatch: 2,
		EmbeddingsLoad: 60})
	tooMany := status(429, "Retry-After", "0")
	p.failWith(tooMany, tooMany, tooMany, tooMany)
	_, err := embedTexts(t.Context(), e, make([]string, 20))
	if err != nil || p.calls() != 14 {
		t.Errorf("after four refusals: %v, %d calls", err, p.calls())
	}
}

// TestTextRefused has the places of single texts that the model refuses.
func TestTextRefused(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := newApp(t, func(c *config) { c.EmbeddingsURL, c.EmbeddingsModel = p.URL, "small" })
	m := a.signUp("ada")
	doc := a.createDocument(m.AccessToken, `{"content":"aaaa"}`)
	isBad := func(text string) bool { return strings.Contains(text, "refuse me") }
	p.behave(refuseIf(anyText(isBad), 400, "the provider's words"))
	for _, row := range []struct{ method, path, body, loc string }{
		{"POST", "", `{"content":"refuse me"}`, `"content"`},
		{"POST", "", `{"documents":[{"content":"aa"},{"content":"own","embedding":[1,2,3]},` +
			`{"content":"refuse me"}]}`, `"documents",2,"content"`},
		{"PUT", fmt.Sprintf("/%d", doc.ID), `{"content":"refuse me"}`, `"content"`},
		{"POST", "/search", `{"query":"refuse me"}`, `"query"`},
		{"POST", "/search", `{"query":"refuse me","mode":"hybrid"}`, `"query"`},
	} {
		ans := a.want(a.do(row.method, docsPath+row.path, m.AccessToken, row.body), 422,
			"text_refused")
		if text := string(ans.body); !strings.Contains(text, `"loc":["body",`+row.loc+`]`) ||
			strings.Contains(text, "words") {
			t.Errorf("%s %s: %s", row.method, row.body, text)
		}
	}
	if !strings.Contains(suiteLog.text(), "embeddings: status 400: the provider's words") {
		t.Error("the log does not tell why the provider refused a text")
	}
}

// TestStrayRefusal: the field "dimensions" is left out only when the answer without it was right.
func TestStrayRefusal(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := newApp(t, func(c *config) { c.EmbeddingsURL, c.EmbeddingsModel = p.URL, "small" })
	m := a.signUp("ada")
	// Without "dimensions" the model has four.
	p.behave(func(q question) (int, string) {
		if q.Dimensions == 0 {
			return answerWith(`{"index":%d,"embedding":[1,2,3,4]}`, ",")(q)
		}
		return 0, ""
	})
	p.failWith(status(400), status(400))
	a.want(a.do("POST", docsPath, m.AccessToken, `{"content":"aaaa"}`), 502, "embeddings_failed")
	a.createDocument(m.AccessToken, `{"content":"aaaa"}`)
	// A provider that refuses the field, and another that stands in for it later.
	p.behave(refuseIf(func(q question) bool { return q.Dimensions > 0 }, 422, "extra field"))
	a.createDocument(m.AccessToken, `{"content":"aaaa"}`)
	before := p.calls()
	a.createDocument(m.AccessToken, `{"content":"aaaa"}`)
	if p.calls() != before+1 {
		t.Errorf("a provider that refuses the field gets it again: %q", p.asked[before:])
	}
	p.behave(refuseIf(func(q question) bool { return q.Dimensions == 0 }, 400, "missing"))
	a.createDocument(m.AccessToken, `{"content":"aaaa"}`)
}

// TestEmbeddingsShare holds all calls of one user's batches: another user's query is answered
// meanwhile, and so is that user's own.
func TestEmbeddingsShare(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := newApp(t, func(c *config) {
		c.EmbeddingsURL, c.EmbeddingsModel, c.EmbeddingsBatch = p.URL, "small", 2
	})
	m, other := a.signUp("ada"), a.signUp("bob")
	held, proceed := make(chan bool, 100), make(chan bool)
	p.behave(func(q question) (int, string) {
		if len(q.Input) > 1 {
			held <- true
			<-proceed
		}
		return 0, ""
	})
	docs := `{"documents":[` + strings.Repeat(`{"content":"aa"},`, 19) + `{"content":"b"}]}`
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() { a.want(a.do("POST", docsPath, m.AccessToken, docs), 201, "") })
	}
	for range maxCalls/2 - 1 {
		<-held
	}
	for _, who := range []member{other, m} {
		a.want(a.do("POST", docsPath+"/search", who.AccessToken, `{"query":"aa"}`), 200, "")
	}
	if len(held) > 0 {
		t.Errorf("%d calls more than a share are in progress", len(held))
	}
	close(proceed)
	group.Wait()
}

// TestEmbeddingsGone cancels a batch whose client has gone.
func TestEmbeddingsGone(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	e := newEmbedder(&config{EmbeddingsURL: p.URL, EmbeddingDimensions: 3, EmbeddingsBatch: 1,
		EmbeddingsLoad: 60})
	ctx, cancel := context.WithCancel(t.Context())
	proceed := make(chan bool)
	defer close(proceed)
	p.behave(func(q question) (int, string) {
		cancel()
		<-proceed
		return 0, ""
	})
	_, err := embedTexts(ctx, e, make([]string, 100))
	if !errors.Is(err, context.Canceled) || p.calls() > maxCalls {
		t.Errorf("a client that has gone: %v after %d calls", err, p.calls())
	}
	if used, waiting := e.calls.state(); used != 0 || waiting != 0 {
		t.Errorf("then %d calls are in progress, %d wait", used, waiting)
	}
}

// TestLoadTimeout: a first call may take longer, or, here, less long.
func TestLoadTimeout(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := newApp(t, func(c *config) { c.EmbeddingsURL, c.EmbeddingsModel = p.URL, "small" })
	m := a.signUp("ada")
	a.embedder.loadTimeout = 50 * time.Millisecond
	p.failWith(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ans := a.want(a.do("POST", docsPath, m.AccessToken, `{"content":"aaaa"}`), 503,
		"embeddings_unavailable")
	if !strings.Contains(string(ans.body), "still loading its model") {
		t.Errorf("a model that is loading: %s", ans.body)
	}
	a.embedder.answered.Store(time.Now().Add(-loadedTime / 2).Unix())
	p.failWith(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(200 * time.Millisecond)
		io.WriteString(w, `{"data":[{"index":0,"embedding":[1,0,0]}]}`)
	})
	a.createDocument(m.AccessToken, `{"content":"aaaa"}`)
	p.failWith(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := embedTexts(ctx, a.embedder, []string{"a", "b"})
	if err == nil || !strings.Contains(err.Error(), "Send fewer") {
		t.Errorf("a provider that is too slow for a batch: %v", err)
	}
}

// TestProviderCloses covers a provider that closes a connection as the next request comes.
func TestProviderCloses(t *testing.T) {
	t.Parallel()
	var used sync.Map
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, again := used.LoadOrStore(r.RemoteAddr, true); again {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, `{"data":[{"embedding":[1,0,0]}]}`)
	}))
	defer p.Close()
	e := newEmbedder(&config{EmbeddingsURL: p.URL, EmbeddingDimensions: 3, EmbeddingsLoad: 60})
	for range 5 {
		if _, err := embedTexts(t.Context(), e, []string{"a"}); err != nil {
			t.Fatal(err)
		}
	}
	if idle := e.client.Transport.(*http.Transport).IdleConnTimeout; idle >= 5*time.Second {
		t.Errorf("idle connections close after %v, a provider's after 5 s", idle)
	}
}

// TestProviderMessage: the log has what a provider says, in one short line without secrets.
func TestProviderMessage(t *testing.T) {
	t.Parallel()
	e := newEmbedder(&config{EmbeddingsKey: "sk-canary",
		EmbeddingsURL: "https://user:pass-canary@example.com/v1?code=canary%2Fcode&api-version=1"})
	for body, want := range map[string]string{
		`{"error":{"message":"too long","code":7}}`:                 "too long",
		`{"detail":[{"msg":"bad \"input\"","input":"a document"}]}`: `bad \"input\"`,
		`{"error": "the input length exceeds"}`:                     "the input length exceeds",
		`{"error":{"code":7}}`:                                      `{"error":{"code":7}}`,
		"<html>\n <b>Bad\tgateway\x1b\u202e\x00</b>":                "<html> <b>Bad gateway</b>",
		"not \xff UTF-8":                                            "not  UTF-8",
		"":                                                          "",
		`{"message":"Incorrect key: sk-canary"}`:                    "Incorrect key: …",
		"no /v1?code=canary%2Fcode&api-version=1 or pass-canary":    "no /v1?… or …",
	} {
		if got := e.message([]byte(body)); got != want {
			t.Errorf("of %q the log has %q, want %q", body, got, want)
		}
	}
	if n := len(e.message(bytes.Repeat([]byte("é "), 1<<20))); n > maxText {
		t.Errorf("a long message has %d bytes", n)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	date := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	for header, want := range map[string]time.Duration{
		"": retryPause, "soon": retryPause, "-1": retryPause, "NaN": retryPause,
		"0": time.Millisecond, "3": 3 * time.Second, "0.5": time.Second / 2,
		"1e3": 1000 * time.Second, "18446744074": time.Hour, "1e999": time.Hour,
		date(-time.Hour): time.Millisecond, date(24 * time.Hour): time.Hour,
	} {
		if got := retryAfter(header); got != want {
			t.Errorf("Retry-After: %s waits %v, want %v", header, got, want)
		}
	}
	if got := retryAfter(date(time.Minute)); got > time.Minute || got < 30*time.Second {
		t.Errorf("Retry-After: a date in a minute waits %v", got)
	}
}

func TestEmbeddingsURL(t *testing.T) {
	t.Parallel()
	const azure = "https://x.openai.azure.com/openai/deployments/small"
	for given, want := range map[string]string{
		"https://api.openai.com/v1":               "https://api.openai.com/v1/embeddings",
		"https://api.openai.com/v1/":              "https://api.openai.com/v1/embeddings",
		"http://127.0.0.1:11434":                  "http://127.0.0.1:11434/v1/embeddings",
		"http://127.0.0.1:11434/":                 "http://127.0.0.1:11434/v1/embeddings",
		"https://example.com/proxy/v1/embeddings": "https://example.com/proxy/v1/embeddings",
		"https://example.com/v1/embeddings/":      "https://example.com/v1/embeddings",
		"https://example.com/openai":              "https://example.com/openai/v1/embeddings",
		"https://ark.example.com/api/v3":          "https://ark.example.com/api/v3/embeddings",
		"https://example.com/api/paas/v4/":        "https://example.com/api/paas/v4/embeddings",
		"https://example.com/v1beta/openai/":      "https://example.com/v1beta/openai/embeddings",
		"https://example.com/v1?key=a%2Fb":        "https://example.com/v1/embeddings?key=a%2Fb",
		azure + "?api-version=2024-10-21":         azure + "/embeddings?api-version=2024-10-21",
		azure + "/embeddings?api-version=1":       azure + "/embeddings?api-version=1",
		"https://x.azure.com/openai/v1/":          "https://x.azure.com/openai/v1/embeddings",
	} {
		if got := embeddingsURL(given).String(); got != want {
			t.Errorf("EMBEDDINGS_URL %s asks %s, want %s", given, got, want)
		}
	}
}

func TestEmbeddingsHeader(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ host, header, want string }{
		{"api.openai.com", "", "Authorization: Bearer a-key"},
		{"api.openai.com", "authorization", "Authorization: Bearer a-key"},
		{"x.openai.azure.com", "", "Api-Key: a-key"},
		{"x.openai.azure.com", "Authorization", "Authorization: Bearer a-key"},
		{"api.example.com", "x-api-key", "X-Api-Key: a-key"},
	} {
		e := newEmbedder(&config{EmbeddingsURL: "https://" + row.host, EmbeddingsKey: "a-key",
			EmbeddingsHeader: row.header})
		var b strings.Builder
		e.header.Write(&b)
		if want := row.want + "\r\n"; !strings.Contains(b.String(), want) || len(e.header) != 3 {
			t.Errorf("%+v sends %q", row, b.String())
		}
	}
}
