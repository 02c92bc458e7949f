package main

// embeddings.go asks a provider for the embeddings of texts, by the protocol of OpenAI's
// POST /v1/embeddings, which Ollama, llama.cpp, vLLM and TEI also have.
//
// Threats and answers. The provider is somebody else's program: its answers are checked like any
// input, its time and the calls to it are bounded, in total and per user, and what it says is
// logged, cut and cleaned, but not passed on. The key and the query of the URL are in no error and
// in no log, and redirects do not take them elsewhere.

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	json "encoding/json/v2"
)

const (
	callTimeout     = 15 * time.Second // of one call: a part on a CPU takes seconds
	restTimeout     = 20 * time.Second // of a request, beyond one call that loads the model
	loadedTime      = 4 * time.Minute  // after an answer; Ollama unloads a model after five
	maxCalls        = 8                // at once: a provider queues more, and memory is bounded
	maxPart         = 64 << 10         // bytes of text in a call: 16,000 tokens, seconds on a CPU
	maxRetries      = 4                // of a call for several texts
	retryPause      = time.Second      // before a retry, unless Retry-After says another time
	maxRetryPause   = 4 * time.Second  // a longer one is the client's to wait
	bytesPerElement = 64               // of an answer: a number has 24 characters, and its indent
)

// embedder is a provider. It is safe for concurrent use.
type embedder struct {
	url         *url.URL
	header      http.Header
	secrets     []string // what no log may show
	model       string
	dimensions  int64
	size        int64         // texts in a call at most
	loadTimeout time.Duration // of a call that may have to load the model
	client      *http.Client
	calls       limiter
	batches     limiter      // requests of several calls
	answer      *input       // how answers are read
	field       atomic.Int64 // "dimensions" of a call; 0 where the provider refuses the field
	answered    atomic.Int64 // when it last answered well, in seconds since 1970
}

// providerAnswer is what a provider answers, as far as it is read.
type providerAnswer struct {
	Data []providerVector `json:"data"`
}

type providerVector struct {
	Index     nullable[int64] `json:"index"`
	Embedding vector          `json:"embedding"`
}

// newEmbedder returns the provider of the settings, or nil where there is none.
func newEmbedder(cfg *config) *embedder {
	if cfg.EmbeddingsURL == "" {
		return nil
	}
	e := &embedder{url: embeddingsURL(cfg.EmbeddingsURL), model: cfg.EmbeddingsModel,
		dimensions: cfg.EmbeddingDimensions, size: cfg.EmbeddingsBatch,
		loadTimeout: time.Duration(cfg.EmbeddingsLoad) * time.Second}
	e.calls = limiter{total: maxCalls, share: maxCalls / 2, queue: 256, timeout: restTimeout,
		detail: "Too many texts are being embedded; try again."}
	e.batches = limiter{total: maxCalls, share: 1, queue: 256, timeout: restTimeout,
		detail: "Too many batches are being embedded; try again."}
	e.answer = compileInput(reflect.TypeFor[providerAnswer]())
	e.answer.setVectors(e.dimensions)
	e.field.Store(e.dimensions)
	e.client = &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: maxCalls,
			MaxConnsPerHost: maxCalls, IdleConnTimeout: 4 * time.Second}, // uvicorn's are 5 s
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	// A key without a value is not sent. It lets net/http repeat a request for which the provider
	// has just closed an idle connection.
	e.header = http.Header{"Content-Type": {"application/json"}, "Idempotency-Key": nil}
	if key, name := cfg.EmbeddingsKey, cfg.EmbeddingsHeader; key != "" {
		if name == "" && strings.HasSuffix(e.url.Hostname(), ".azure.com") {
			name = "api-key"
		}
		if name == "" || strings.EqualFold(name, "Authorization") {
			name, key = "Authorization", "Bearer "+key
		}
		e.header.Set(name, key)
	}
	password, _ := e.url.User.Password()
	e.secrets = []string{cfg.EmbeddingsKey, password, e.url.RawQuery}
	return e
}

// versionPath matches a path that has a version, as /v1 and /v1beta/openai, or an Azure deployment.
var versionPath = regexp.MustCompile(`/(v[0-9]|deployments/)`)

// embeddingsURL returns the URL to ask: that of the setting, or what its base lacks added.
func embeddingsURL(setting string) *url.URL {
	u, _ := url.Parse(setting) // config has checked it
	switch u.Path = "/" + strings.Trim(u.Path, "/"); {
	case strings.HasSuffix(u.Path, "/embeddings"):
		return u
	case versionPath.MatchString(u.Path):
		return u.JoinPath("embeddings")
	}
	return u.JoinPath("v1/embeddings")
}

// ---- requests ----

// embedJob is one request for the embeddings of texts.
type embedJob struct {
	*embedder
	texts   []string
	vectors []vector
	size    atomic.Int64      // texts in a call at most; fewer after a refusal
	check   func() error      // checkProvider, once
	loc     func(i int) []any // the place of text i in what the client sent
}

// embed returns a vector for each text, all or none; many texts go in parts. It returns
// errEmbeddingsUnavailable when the provider is away, overloaded or too slow, errEmbeddingsFailed
// when it refuses any text or its answer is invalid, errTextRefused with the place that loc returns
// when it refuses one text only, errBusy for the client's own share, the context's error when the
// client has gone.
func (e *embedder) embed(
	ctx context.Context, texts []string, loc func(i int) []any,
) ([]vector, error) {
	ctx, cancel := context.WithTimeout(ctx, e.loadTimeout+restTimeout)
	defer cancel()
	j := &embedJob{embedder: e, texts: texts, vectors: make([]vector, len(texts)), loc: loc}
	j.size.Store(e.size)
	j.check = sync.OnceValue(func() error { return e.checkProvider(ctx) })
	bounds := []int{0} // of the parts
	for at := 0; at < len(texts); bounds = append(bounds, at) {
		at += partLength(texts[at:], e.size)
	}
	if len(bounds) == 2 {
		return j.vectors, j.embedPart(ctx, 0, len(texts))
	}
	release, err := acquireSlot(ctx, &e.batches)
	if err != nil {
		return nil, err
	}
	defer release()
	var group sync.WaitGroup
	var next atomic.Int64
	failed := make(chan error, maxCalls)
	for range maxCalls/2 - 1 { // a client's share but one, which is for its queries
		group.Go(func() {
			for i := next.Add(1); i < int64(len(bounds)); i = next.Add(1) {
				if err := j.embedPart(ctx, bounds[i-1], bounds[i]); err != nil {
					failed <- err
					cancel()
					return
				}
			}
		})
	}
	group.Wait()
	close(failed)
	return j.vectors, <-failed // the first, or nil
}

// partLength returns how many of the texts go into one call: at most n, and at most maxPart bytes
// unless the first alone has more.
func partLength(texts []string, n int64) int {
	bytes := 0
	for i, text := range texts {
		if bytes += len(text); i > 0 && (int64(i) >= n || bytes > maxPart) {
			return i
		}
	}
	return len(texts)
}

// embedPart fills in the vectors of texts[from:to]. After a refusal for which the provider is not
// at fault it asks for half as many texts at a time. A text that is refused alone, twice, is an
// error: so 32 texts take at most 13 calls.
func (j *embedJob) embedPart(ctx context.Context, from, to int) error {
	size, refused := j.size.Load(), -1
	for from < to {
		n := partLength(j.texts[from:to], size)
		vectors, err := j.ask(ctx, j.texts[from:from+n], j.field.Load())
		f, ok := errors.AsType[*failure](err)
		if ok && f.refused {
			err = j.check()
		}
		switch {
		case err != nil:
			return err
		case f == nil:
			copy(j.vectors[from:], vectors)
			from += n
		case n > 1:
			size = int64(n / 2)
			j.size.Store(size)
		case refused < from:
			refused = from
		default:
			p := *errTextRefused
			p.errors = []fieldError{{j.loc(from), "is refused by the embedding model: it may be " +
				"too long for it, or hold nothing that it knows", "text_refused"}}
			f.problem = &p
			return f
		}
	}
	return nil
}

// checkProvider asks for the embedding of a plain text, with the field "dimensions" or without, and
// keeps to what is answered well. If neither is, the provider is at fault, and not the texts.
func (e *embedder) checkProvider(ctx context.Context) (err error) {
	for _, field := range []int64{e.dimensions, 0} {
		_, err = e.ask(ctx, []string{"hello"}, field)
		if err == nil {
			e.field.Store(field)
		}
		if f, ok := errors.AsType[*failure](err); !ok || !f.refused {
			break
		}
	}
	return err
}

// failure is a call that failed.
type failure struct {
	problem *problem      // what the client is told
	cause   error         // what the log is told
	refused bool          // whether another text may be answered
	pause   time.Duration // after which a retry may succeed, 0 where it may not
}

func (f *failure) Error() string   { return fmt.Sprintf("%v: %v", f.problem, f.cause) }
func (f *failure) Unwrap() []error { return []error{f.problem, f.cause} }

// ask makes a call, and repeats it where that may succeed soon: once for one text, up to maxRetries
// times for several, of which a provider with a limit of calls a second refuses some.
func (e *embedder) ask(ctx context.Context, texts []string, dimensions int64) ([]vector, error) {
	release, err := acquireSlot(ctx, &e.calls)
	if errors.Is(err, context.DeadlineExceeded) {
		err = e.calls.busy()
	}
	if err != nil {
		return nil, err
	}
	defer release()
	vectors, failed := e.call(ctx, texts, dimensions)
	for range min(len(texts), maxRetries) {
		if failed == nil || failed.pause == 0 || failed.pause > maxRetryPause {
			break
		}
		select {
		case <-time.After(failed.pause):
		case <-ctx.Done():
		}
		vectors, failed = e.call(ctx, texts, dimensions)
	}
	if failed != nil {
		failed.cause = fmt.Errorf("POST %s: %w", e.url.EscapedPath(), failed.cause)
		return nil, failed
	}
	e.answered.Store(time.Now().Unix())
	return vectors, nil
}

// call makes one call and tells from its failure whether the texts, the settings or the state of
// the provider may be the reason.
func (e *embedder) call(
	ctx context.Context, texts []string, dimensions int64,
) ([]vector, *failure) {
	timeout, loaded := e.loadTimeout, time.Since(time.Unix(e.answered.Load(), 0)) < loadedTime
	if loaded {
		timeout = callTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	status, header, body, err := e.post(ctx, texts, dimensions)
	if err == nil && status == http.StatusOK {
		return e.read(body, len(texts))
	}
	p := *errEmbeddingsUnavailable
	f := &failure{problem: &p, cause: err}
	if err == nil {
		f.cause = fmt.Errorf("status %d: %s", status, e.message(body))
	}
	switch {
	case loaded && len(texts) > 1 && errors.Is(err, context.DeadlineExceeded):
		p.detail = "The embedding provider is too slow for so many texts at once; nothing was " +
			"stored. Send fewer."
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		f.pause = retryAfter(header.Get("Retry-After"))
		p.header[1] = fmt.Sprint(max(5, math.Ceil(f.pause.Seconds())))
	case status == http.StatusInternalServerError: // also what Ollama and llama.cpp refuse
		f.refused = true
	case err == nil && status < 500 && status != http.StatusRequestTimeout:
		f.problem = errEmbeddingsFailed
		f.refused = slices.Contains([]int{400, 413, 422, 424}, status) // 424 is TEI's
	}
	return nil, f
}

// retryAfter returns the wait that a Retry-After header asks for, in seconds or until a date, at
// most an hour, or retryPause where it does not.
func retryAfter(header string) time.Duration {
	seconds, err := strconv.ParseFloat(header, 64) // out of range, it is infinite
	if at, failed := http.ParseTime(header); failed == nil {
		seconds, err = max(0, time.Until(at).Seconds()), nil
	}
	if err != nil && !errors.Is(err, strconv.ErrRange) || !(seconds >= 0) {
		return retryPause
	}
	return max(time.Duration(min(seconds, 3600)*float64(time.Second)), time.Millisecond)
}

// post sends one request, without dimensions where they are 0, and reads the answer whole, as far
// as it may be long. It has no encoding_format: proxies to Vertex, Bedrock and Voyage refuse it.
func (e *embedder) post(
	ctx context.Context, texts []string, dimensions int64,
) (status int, header http.Header, body []byte, err error) {
	question, err := json.Marshal(struct {
		Model      string   `json:"model"`
		Input      []string `json:"input"`
		Dimensions int64    `json:"dimensions,omitzero"`
	}{e.model, texts, dimensions})
	if err != nil {
		return 0, nil, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, "POST", e.url.String(), bytes.NewReader(question))
	if err != nil {
		return 0, nil, nil, err
	}
	r.Header = e.header.Clone()
	answer, err := e.client.Do(r)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // without the URL, which may hold a secret
	}
	if err != nil {
		return 0, nil, nil, err
	}
	defer answer.Body.Close()
	limit := 64<<10 + int64(len(texts))*e.dimensions*bytesPerElement
	body, err = io.ReadAll(io.LimitReader(answer.Body, limit))
	return answer.StatusCode, answer.Header, body, err
}

// messageMember matches what JSON errors say. The rest often has the texts that were asked for.
var messageMember = regexp.MustCompile(`"(?:message|msg|error|detail)"\s*:\s*"((?:[^"\\]|\\.)*)"`)

// message returns the message of a refusal as one short line without secrets.
func (e *embedder) message(body []byte) string {
	text := string(body)
	if m := messageMember.FindStringSubmatch(text); m != nil {
		text = m[1]
	}
	for _, secret := range e.secrets {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "…")
		}
	}
	return cleanText(strings.Join(strings.Fields(text), " "))
}

// read returns the n vectors of an answer in the order of their indexes, or, where all of these are
// 0, null or absent, in the order of the answer.
func (e *embedder) read(body []byte, n int) ([]vector, *failure) {
	var answer providerAnswer
	o := newObject(&reader{open: true}, e.answer, reflect.ValueOf(&answer).Elem())
	if o.readJSON(body); o.syntax == "" {
		o.finish("json")
	}
	f := &failure{problem: errEmbeddingsFailed}
	switch {
	case o.syntax != "":
		f.cause = errors.New(o.syntax)
	case o.faults != nil:
		loc := o.faults[0].Loc
		f.cause = fmt.Errorf("its %v %s", loc, o.faults[0].Msg)
		f.refused = slices.Contains(loc, "embedding") // as of a text without a known word
	case len(answer.Data) != n:
		f.cause = fmt.Errorf("it has %d embeddings for %d texts", len(answer.Data), n)
	}
	if f.cause != nil {
		return nil, f
	}
	vectors, ordered := make([]vector, n), true
	for _, d := range answer.Data {
		ordered = ordered && (d.Index.Value == nil || *d.Index.Value == 0)
	}
	for i, d := range answer.Data {
		at := int64(i)
		if !ordered {
			at = *cmp.Or(d.Index.Value, new(int64))
		}
		if at < 0 || at >= int64(n) || vectors[at] != nil || d.Embedding == nil {
			f.cause = fmt.Errorf("its indexes are not 0 to %d, each once", n-1)
			return nil, f
		}
		vectors[at] = d.Embedding
	}
	return vectors, nil
}
