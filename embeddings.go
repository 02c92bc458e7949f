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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"encoding/json/jsontext"
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
	cfg         *config
	url         *url.URL
	header      http.Header
	loadTimeout time.Duration // of a call that may have to load the model
	client      *http.Client
	calls       limiter
	batches     limiter      // requests of several calls
	dimensions  atomic.Int64 // what calls ask for; 0 where the provider refuses the field
	answered    atomic.Int64 // when it last answered well, in seconds since 1970
}

// newEmbedder returns the provider of the settings, or nil without one.
func newEmbedder(cfg *config) *embedder {
	if cfg.EmbeddingsURL == "" {
		return nil
	}
	e := &embedder{cfg: cfg, url: embeddingsURL(cfg.EmbeddingsURL),
		loadTimeout: time.Duration(cfg.EmbeddingsLoad) * time.Second}
	e.calls = limiter{total: maxCalls, share: maxCalls / 2, queue: 256, timeout: restTimeout,
		detail: "Too many texts are being embedded; try again."}
	e.batches = limiter{total: maxCalls, share: 1, queue: 256, timeout: restTimeout,
		detail: "Too many batches are being embedded; try again."}
	e.dimensions.Store(e.cfg.EmbeddingDimensions)
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
	return e
}

// versionPath matches a path that has a version, as /v1 and /v1beta/openai, or an Azure deployment.
var versionPath = regexp.MustCompile(`/(v[0-9]|deployments/)`)

// embeddingsURL returns the URL of the setting; to a base it adds what is missing.
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

// textToEmbed is a text of a request that needs an embedding.
type textToEmbed struct {
	text   string
	object []any   // the location of the object with the text, in the request
	member string  // of the object
	vector *vector // where its embedding goes
}

// embedJob is what the calls for one request share.
type embedJob struct {
	*embedder
	maxTexts atomic.Int64 // in a call; fewer after a refusal
	check    func() error // checkProvider, once
}

// embed sets the vectors of texts; many go in parts. It returns errEmbeddingRequired without a
// provider, errEmbeddingsUnavailable when it is away, overloaded or too slow, errEmbeddingsFailed
// when it refuses any text or its answer is invalid, errTextRefused when it refuses one text only,
// errBusy for the client's own share, ctx's error when it has gone. After errors, some are set.
func (e *embedder) embed(ctx context.Context, texts ...textToEmbed) error {
	switch {
	case len(texts) == 0:
		return nil
	case e == nil:
		return embeddingRequired(texts[0].object)
	}
	ctx, cancel := context.WithTimeout(ctx, e.loadTimeout+restTimeout)
	defer cancel()
	j := &embedJob{embedder: e}
	j.maxTexts.Store(e.cfg.EmbeddingsBatch)
	j.check = sync.OnceValue(func() error { return e.checkProvider(ctx) })
	parts := make(chan []textToEmbed, len(texts))
	for rest := texts; len(rest) > 0; {
		n := partLength(rest, e.cfg.EmbeddingsBatch)
		parts <- rest[:n]
		rest = rest[n:]
	}
	close(parts)
	if len(parts) == 1 {
		return j.embedPart(ctx, texts)
	}
	release, err := e.batches.acquire(ctx, requestOf(ctx).client, 1)
	if err != nil {
		return err
	}
	defer release()
	var group sync.WaitGroup
	failed := make(chan error, maxCalls)
	for range maxCalls/2 - 1 { // the client's share but one: that is for its queries
		group.Go(func() {
			for part := range parts {
				if err := j.embedPart(ctx, part); err != nil {
					failed <- err
					cancel()
					return
				}
			}
		})
	}
	group.Wait()
	close(failed)
	return <-failed // the first, or nil
}

// partLength returns how many of the texts go into one call: at most n, and at most maxPart bytes
// unless the first alone has more.
func partLength(texts []textToEmbed, n int64) int {
	size := 0
	for i, t := range texts {
		if size += len(t.text); i > 0 && (int64(i) >= n || size > maxPart) {
			return i
		}
	}
	return len(texts)
}

// embedPart sets the vectors of texts. After a refusal for which the provider is not at fault it
// asks for half as many texts at a time; later parts begin with the first number that it accepts. A
// text that is refused alone, twice, is an error: so 32 texts take at most 13 calls.
func (j *embedJob) embedPart(ctx context.Context, texts []textToEmbed) error {
	maxTexts := j.maxTexts.Load()
	refusals := 0 // of the first, alone
	for len(texts) > 0 {
		n := partLength(texts, maxTexts)
		err := j.ask(ctx, texts[:n], j.dimensions.Load())
		if err == nil {
			j.maxTexts.CompareAndSwap(j.cfg.EmbeddingsBatch, maxTexts)
			texts, refusals = texts[n:], 0
			continue
		}
		f, ok := errors.AsType[*failure](err)
		if !ok || !f.refused {
			return err
		}
		if err := j.check(); err != nil {
			return err
		}
		if n > 1 {
			maxTexts = int64(n / 2)
		} else if refusals++; refusals == 2 {
			loc := append(texts[0].object, texts[0].member)
			f.problem = errTextRefused.withErrors(fieldError{loc, "is refused by the embedding " +
				"model: it may be too long for it, or hold nothing that it knows", "text_refused"})
			return f
		}
	}
	return nil
}

// checkProvider asks for the embedding of a plain text, with the field "dimensions" or without, and
// keeps to what is answered well. If neither is, the provider is at fault, and not the texts.
func (e *embedder) checkProvider(ctx context.Context) (err error) {
	for _, n := range []int64{e.cfg.EmbeddingDimensions, 0} {
		err = e.ask(ctx, []textToEmbed{{text: "hello", vector: new(vector)}}, n)
		if err == nil {
			e.dimensions.Store(n)
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
func (e *embedder) ask(ctx context.Context, texts []textToEmbed, dimensions int64) error {
	release, err := e.calls.acquire(ctx, requestOf(ctx).client, 1)
	if errors.Is(err, context.DeadlineExceeded) {
		err = e.calls.busy()
	}
	if err != nil {
		return err
	}
	defer release()
	for retries := min(len(texts), maxRetries); ; retries-- {
		failed := e.call(ctx, texts, dimensions)
		if failed == nil {
			e.answered.Store(time.Now().Unix())
			return nil
		}
		if retries == 0 || failed.pause == 0 || failed.pause > maxRetryPause {
			failed.cause = fmt.Errorf("POST %s: %w", e.url.EscapedPath(), failed.cause)
			return failed
		}
		select {
		case <-time.After(failed.pause):
		case <-ctx.Done():
		}
	}
}

// call makes one call. A failure says whether the texts, the settings or the state of the provider
// may be the reason.
func (e *embedder) call(ctx context.Context, texts []textToEmbed, dimensions int64) *failure {
	timeout, loaded := e.loadTimeout, time.Since(time.Unix(e.answered.Load(), 0)) < loadedTime
	if loaded {
		timeout = callTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, body, err := e.post(ctx, texts, dimensions)
	f := &failure{problem: errEmbeddingsUnavailable, cause: err}
	if err != nil {
		if loaded && len(texts) > 1 && errors.Is(err, context.DeadlineExceeded) {
			f.problem = f.problem.withDetail("The embedding provider is too slow for so many " +
				"texts at once; nothing was stored. Send fewer.")
		}
		return f
	}
	switch status := response.StatusCode; {
	case status == http.StatusOK:
		f.problem = errEmbeddingsFailed
		if f.refused, f.cause = e.readVectors(body, texts); f.cause == nil {
			return nil
		}
		return f
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		f.pause = retryAfter(response.Header.Get("Retry-After"))
		p := *errEmbeddingsUnavailable
		p.header[1] = fmt.Sprint(max(5, math.Ceil(f.pause.Seconds())))
		f.problem = &p
	case status == http.StatusInternalServerError: // also what Ollama and llama.cpp refuse
		f.refused = true
	case status < 500 && status != http.StatusRequestTimeout:
		f.problem = errEmbeddingsFailed
		f.refused = slices.Contains([]int{400, 413, 422, 424}, status) // 424 is TEI's
	}
	f.cause = fmt.Errorf("status %d: %s", response.StatusCode, e.message(body))
	return f
}

// retryAfter returns the wait that a Retry-After header asks for, in seconds or until a date, at
// most an hour, or retryPause where it does not.
func retryAfter(header string) time.Duration {
	seconds, err := strconv.ParseFloat(header, 64) // out of range, it is infinite
	if at, failed := http.ParseTime(header); failed == nil {
		seconds, err = max(0, time.Until(at).Seconds()), nil
	}
	if errors.Is(err, strconv.ErrSyntax) || math.IsNaN(seconds) || seconds < 0 {
		return retryPause
	}
	return max(time.Duration(min(seconds, 3600)*float64(time.Second)), time.Millisecond)
}

// post sends one request, without dimensions where they are 0, and reads the response up to a limit
// for texts. It sends no encoding_format: proxies to Vertex, Bedrock and Voyage refuse it.
func (e *embedder) post(
	ctx context.Context, texts []textToEmbed, dimensions int64,
) (response *http.Response, body []byte, err error) {
	var inputs []string
	for _, t := range texts {
		inputs = append(inputs, t.text)
	}
	request, err1 := json.Marshal(struct {
		Model      string   `json:"model"`
		Input      []string `json:"input"`
		Dimensions int64    `json:"dimensions,omitzero"`
	}{e.cfg.EmbeddingsModel, inputs, dimensions})
	r, err2 := http.NewRequestWithContext(ctx, "POST", e.url.String(), bytes.NewReader(request))
	if err := cmp.Or(err1, err2); err != nil {
		return nil, nil, err
	}
	r.Header = e.header.Clone()
	response, err = e.client.Do(r)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // without the URL, which may hold a secret
	}
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	limit := 64<<10 + int64(len(texts))*e.cfg.EmbeddingDimensions*bytesPerElement
	body, err = io.ReadAll(io.LimitReader(response.Body, limit))
	return response, body, err
}

// messageMember matches what JSON errors say. The rest often has the texts that were asked for.
var messageMember = regexp.MustCompile(`"(?:message|msg|error|detail)"\s*:\s*"((?:[^"\\]|\\.)*)"`)

// message returns the message of a refusal in one short line without secrets.
func (e *embedder) message(body []byte) string {
	text := string(body)
	if m := messageMember.FindStringSubmatch(text); m != nil {
		text = m[1]
	}
	password, _ := e.url.User.Password()
	for _, secret := range []string{e.cfg.EmbeddingsKey, password, e.url.RawQuery} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "…")
		}
	}
	return cleanText(strings.Join(strings.Fields(text), " "))
}

// providerVector is an item of an answer, as far as it is read.
type providerVector struct {
	Index     float64        `json:"index"` // null or absent: 0
	Embedding jsontext.Value `json:"embedding"`
}

// readVectors sets the vectors of texts from an answer, in the order of its indexes, or, where all
// are 0, in its own. It returns what is wrong, and whether another text may be answered.
func (e *embedder) readVectors(body []byte, texts []textToEmbed) (refused bool, err error) {
	var answer struct {
		Data []providerVector `json:"data"`
	}
	err = json.Unmarshal(bytes.TrimPrefix(body, []byte("\ufeff")), &answer)
	if err != nil {
		return false, errors.New(e.message([]byte(err.Error())))
	}
	hasIndex := func(v providerVector) bool { return v.Index != 0 }
	numbered := slices.ContainsFunc(answer.Data, hasIndex)
	slices.SortStableFunc(answer.Data, func(a, b providerVector) int {
		return cmp.Compare(a.Index, b.Index)
	})
	vectors := make([]vector, len(answer.Data))
	for i, v := range answer.Data {
		if numbered && v.Index != float64(i) {
			return false, fmt.Errorf("its indexes are not 0 to %d, each once", len(vectors)-1)
		}
		refusal := "must be an array of numbers"
		if v.Embedding.Kind() == '[' {
			vectors[i], refusal = parseVector(string(v.Embedding), int(e.cfg.EmbeddingDimensions))
		}
		if refusal != "" { // as of a text without a known word
			return v.Embedding != nil, fmt.Errorf("its [data %d embedding] %s", i, refusal)
		}
	}
	if len(vectors) != len(texts) {
		return false, fmt.Errorf("it has %d embeddings for %d texts", len(vectors), len(texts))
	}
	for i, t := range texts {
		*t.vector = vectors[i]
	}
	return false, nil
}
