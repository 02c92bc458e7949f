package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
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
	fail   []http.HandlerFunc // the next answers, before good ones
	asked  []string           // paths and bodies of the requests
	header http.Header        // of the last request
}

func newProvider(t *testing.T) *provider {
	p := &provider{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		p.mu.Lock()
		p.asked, p.header = append(p.asked, r.URL.Path+" "+string(body)), r.Header
		var fail http.HandlerFunc
		if len(p.fail) > 0 {
			fail, p.fail = p.fail[0], p.fail[1:]
		}
		p.mu.Unlock()
		if fail != nil {
			r.Body = io.NopCloser(bytes.NewReader(body))
			fail(w, r)
			return
		}
		var q struct{ Input []string }
		json.Unmarshal(body, &q)
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
		http.Error(w, "canary of the provider", code)
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
	const batchRequest = `/v1/embeddings {"model":"small","input":["bbbb","ab"],` +
		`"encoding_format":"float","dimensions":3}`
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
		"broken":            {handlers{status(500)}, 503, unavailable, 1},
		"connection broken": {handlers{slow, slow}, 503, unavailable, 0},
		"refused key":       {handlers{status(401)}, 502, failed, 1},
		"unknown model":     {handlers{status(404)}, 502, failed, 1},
		"redirect": {
			handlers{status(307, "Location", "http://127.0.0.1:1/")}, 502, failed, 1,
		},
		"too long a text": {handlers{status(400), status(400)}, 502, failed, 2},
		"no dimensions":   {handlers{status(400)}, 201, "", 2},
		"no JSON":         {handlers{respondWith("<html>")}, 502, failed, 1},
		"endless": {
			handlers{respondWith(`{"data":[` + strings.Repeat(" ", 1<<20))}, 502, failed, 1,
		},
		"empty": {handlers{respondWith(`{}`)}, 502, failed, 1},
		"two for one": {handlers{respondWith(`{"data":[{"index":0,"embedding":[1,0,0]},` +
			`{"index":1,"embedding":[1,0,0]}]}`)}, 502, failed, 1},
		"another index": {
			handlers{respondWith(`{"data":[{"index":1,"embedding":[1,0,0]}]}`)}, 502, failed, 1,
		},
		"another dimension":  {handlers{respondWith(ok("[1,0]"))}, 502, failed, 1},
		"null embedding":     {handlers{respondWith(ok("null"))}, 502, failed, 1},
		"base64":             {handlers{respondWith(ok(`"AACAPw=="`))}, 502, failed, 1},
		"null number":        {handlers{respondWith(ok("[1,null,0]"))}, 502, failed, 1},
		"infinite number":    {handlers{respondWith(ok("[1e999,0,0]"))}, 502, failed, 1},
		"zero vector":        {handlers{respondWith(ok("[0,0,0]"))}, 502, failed, 1},
		"number beyond half": {handlers{respondWith(ok("[1e6,0,0]"))}, 502, failed, 1},
		"trailing data":      {handlers{respondWith(ok("[1,0,0]") + "x")}, 502, failed, 1},
	} {
		a.embedder.noDimensions.Store(false)
		p.failWith(row.fail...)
		before := one[int](t, a.url, `SELECT count(*) FROM documents`)
		ans := a.do("POST", docsPath, m.AccessToken, `{"content":"aaaa"}`)
		a.want(ans, row.status, row.code)
		if strings.Contains(string(ans.body), "canary") {
			t.Errorf("%s: the answer passes on what the provider said: %s", name, ans.body)
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
	if !a.embedder.noDimensions.Load() {
		p.failWith(status(400))
		a.createDocument(m.AccessToken, `{"content":"aaaa"}`)
	}
	a.createDocument(m.AccessToken, `{"content":"aaaa"}`)
	if last := p.asked[len(p.asked)-1]; strings.Contains(last, "dimensions") {
		t.Errorf("a provider that refused the field still gets it: %s", last)
	}
	p.Close()
	a.want(a.do("POST", docsPath, m.AccessToken, `{"content":"aaaa"}`), 503, unavailable)
	a.want(a.do("POST", docsPath+"/search", m.AccessToken, `{"query":"aaaa"}`), 503, unavailable)
	a.want(a.do("POST", docsPath+"/search", m.AccessToken, `{"query":"aaaa","mode":"text"}`),
		200, "")
	const logged = "returned an invalid answer; nothing was stored.: status 401"
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

func TestEmbedderURL(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"https://api.openai.com/v1":               "https://api.openai.com/v1/embeddings",
		"https://api.openai.com/v1/":              "https://api.openai.com/v1/embeddings",
		"http://127.0.0.1:11434":                  "http://127.0.0.1:11434/v1/embeddings",
		"http://127.0.0.1:11434/":                 "http://127.0.0.1:11434/v1/embeddings",
		"https://example.com/proxy/v1/embeddings": "https://example.com/proxy/v1/embeddings",
		"https://example.com/openai":              "https://example.com/openai/v1/embeddings",
	} {
		if got := newEmbedder(&config{EmbeddingsURL: given}).url; got != want {
			t.Errorf("EMBEDDINGS_URL %s asks %s, want %s", given, got, want)
		}
	}
}
