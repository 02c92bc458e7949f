package main

// embeddings.go asks a provider for the embeddings of texts, by the protocol of OpenAI's
// POST /v1/embeddings, which Ollama, llama.cpp, vLLM and TEI also have.
//
// Threats and answers. The provider is somebody else's program: its answers are checked like any
// input, its time and the calls to it are bounded, in total and per user, and what it says is not
// passed on. The key is in no error and in no log, and redirects do not take it elsewhere.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	json "encoding/json/v2"
)

const (
	embedTimeout    = 20 * time.Second // in all, a retry included: a batch on a CPU takes seconds
	callTimeout     = 15 * time.Second // of one call
	maxCalls        = 8                // at once: a provider queues more, and memory is bounded
	retryPause      = time.Second      // before a retry, unless Retry-After says another time
	maxRetryPause   = 4 * time.Second  // a longer one is the client's to wait
	bytesPerElement = 32               // of an answer: a number has some 20 characters
)

// embedder is a provider. It is safe for concurrent use.
type embedder struct {
	url, model, key string
	dimensions      int64
	client          *http.Client
	calls           limiter
	answer          *input      // how answers are read
	noDimensions    atomic.Bool // it refused the field "dimensions"
}

// providerAnswer is what a provider answers, as far as it is read.
type providerAnswer struct {
	Data []providerEmbedding `json:"data"`
}

type providerEmbedding struct {
	Index     int64  `json:"index"`
	Embedding vector `json:"embedding"`
}

// newEmbedder returns the provider of the settings, or nil where there is none.
func newEmbedder(cfg *config) *embedder {
	if cfg.EmbeddingsURL == "" {
		return nil
	}
	e := &embedder{url: cfg.EmbeddingsURL, model: cfg.EmbeddingsModel, key: cfg.EmbeddingsKey,
		dimensions: cfg.EmbeddingDimensions}
	e.calls = limiter{total: maxCalls, share: maxCalls / 2, queue: 256, timeout: embedTimeout,
		detail: "Too many texts are being embedded; try again."}
	e.answer = compileInput(reflect.TypeFor[providerAnswer]())
	e.answer.setVectors(e.dimensions)
	if !strings.HasSuffix(e.url, "/embeddings") { // a base, with or without /v1
		e.url = strings.TrimSuffix(strings.TrimRight(e.url, "/"), "/v1") + "/v1/embeddings"
	}
	e.client = &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment,
			MaxIdleConnsPerHost: maxCalls, MaxConnsPerHost: maxCalls, IdleConnTimeout: time.Minute},
		CheckRedirect: noRedirect,
	}
	return e
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// embed returns a vector for each text, by one call for a client: errEmbeddingsUnavailable when the
// provider is away, overloaded or too slow, errEmbeddingsFailed when it refuses or its answer is
// invalid, errBusy for the client's own share, the context's error when the client has gone.
func (e *embedder) embed(
	ctx context.Context, client clientKey, texts []string,
) ([]vector, error) {
	ctx, cancel := context.WithTimeout(ctx, embedTimeout)
	defer cancel()
	release, err := e.calls.acquire(ctx, client, 1)
	if errors.Is(err, context.DeadlineExceeded) {
		err = e.calls.busy()
	}
	if err != nil {
		return nil, err
	}
	defer release()
	vectors, pause, err := e.call(ctx, texts)
	if pause > 0 && pause <= maxRetryPause {
		select {
		case <-time.After(pause):
			vectors, _, err = e.call(ctx, texts)
		case <-ctx.Done():
		}
	}
	return vectors, err
}

// call asks once, and once more where the provider does not know the field "dimensions". pause is
// the time after which a retry may succeed, 0 where it may not.
func (e *embedder) call(
	ctx context.Context, texts []string,
) (vectors []vector, pause time.Duration, err error) {
	dimensions := e.dimensions
	if e.noDimensions.Load() {
		dimensions = 0
	}
	status, header, body, err := e.post(ctx, texts, dimensions)
	refused := status == http.StatusBadRequest || status == http.StatusUnprocessableEntity
	if err == nil && dimensions > 0 && refused {
		status, header, body, err = e.post(ctx, texts, 0)
		if err == nil && status == http.StatusOK {
			e.noDimensions.Store(true)
		}
	}
	switch {
	case err != nil:
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the URL, which may hold a secret
		}
		return nil, 0, fmt.Errorf("%w: %w", errEmbeddingsUnavailable, err)
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		err = fmt.Errorf("%w: status %d", errEmbeddingsUnavailable, status)
		return nil, retryAfter(header.Get("Retry-After")), err
	case status >= 500:
		return nil, 0, fmt.Errorf("%w: status %d", errEmbeddingsUnavailable, status)
	case status != http.StatusOK:
		return nil, 0, fmt.Errorf("%w: status %d", errEmbeddingsFailed, status)
	}
	vectors, err = e.read(body, len(texts))
	return vectors, 0, err
}

// retryAfter returns the wait that a Retry-After header asks for in seconds, at most an hour, or
// retryPause where it does not.
func retryAfter(header string) time.Duration {
	seconds, err := strconv.Atoi(header) // out of range, it is the largest
	if seconds < 0 || err != nil && !errors.Is(err, strconv.ErrRange) {
		return retryPause
	}
	return max(time.Duration(min(seconds, 3600))*time.Second, time.Millisecond)
}

// post sends one request, without dimensions where they are 0, and reads the answer whole, as far
// as it may be long.
func (e *embedder) post(
	ctx context.Context, texts []string, dimensions int64,
) (status int, header http.Header, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	question, err := json.Marshal(struct {
		Model      string   `json:"model"`
		Input      []string `json:"input"`
		Format     string   `json:"encoding_format"`
		Dimensions int64    `json:"dimensions,omitzero"`
	}{e.model, texts, "float", dimensions})
	if err != nil {
		return 0, nil, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(question))
	if err != nil {
		return 0, nil, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	if e.key != "" {
		r.Header.Set("Authorization", "Bearer "+e.key)
	}
	answer, err := e.client.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	defer answer.Body.Close()
	limit := 64<<10 + int64(len(texts))*e.dimensions*bytesPerElement
	body, err = io.ReadAll(io.LimitReader(answer.Body, limit))
	return answer.StatusCode, answer.Header, body, err
}

// read returns the n vectors of an answer, each under its index once.
func (e *embedder) read(body []byte, n int) ([]vector, error) {
	var answer providerAnswer
	o := newObject(&reader{open: true}, e.answer, reflect.ValueOf(&answer).Elem())
	if o.readJSON(body); o.syntax == "" {
		o.finish("json")
	}
	switch {
	case o.syntax != "":
		return nil, fmt.Errorf("%w: %s", errEmbeddingsFailed, o.syntax)
	case o.faults != nil:
		f := o.faults[0]
		return nil, fmt.Errorf("%w: %v %s", errEmbeddingsFailed, f.Loc, f.Msg)
	case len(answer.Data) != n:
		return nil, fmt.Errorf("%w: it has %d embeddings for %d texts", errEmbeddingsFailed,
			len(answer.Data), n)
	}
	vectors := make([]vector, n)
	for _, d := range answer.Data {
		if d.Index < 0 || d.Index >= int64(n) || vectors[d.Index] != nil || d.Embedding == nil {
			return nil, fmt.Errorf("%w: its indexes are not 0 to %d, each once",
				errEmbeddingsFailed, n-1)
		}
		vectors[d.Index] = d.Embedding
	}
	return vectors, nil
}
