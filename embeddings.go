package main

// embeddings.go asks a provider for the embeddings of texts, by the protocol of OpenAI's
// POST /v1/embeddings, which Ollama, llama.cpp, vLLM and TEI speak too. The provider is another's
// program: its answers are checked like any input, its time and its share of ours are bounded, and what
// it says is not passed on. The key is in no error and in no log.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	embedTimeout  = 20 * time.Second // for all of it, a retry included: a batch on a CPU takes some seconds
	embedAttempt  = 15 * time.Second // for one call
	embedCalls    = 8                // at once: a provider queues what is more, and our memory is bounded
	embedPause    = time.Second      // before a retry, unless Retry-After says another time
	maxEmbedPause = 4 * time.Second  // a longer one is the client's to wait
)

// embedder is a provider. It is safe for concurrent use.
type embedder struct {
	url, model, key string
	dimensions      int
	client          *http.Client
	slots           chan struct{}
	bare            atomic.Bool // it refused the field "dimensions": leave it out
}

// newEmbedder returns the provider of the settings, or nil where there is none.
func newEmbedder(cfg *config) *embedder {
	if cfg.EmbeddingsURL == "" {
		return nil
	}
	e := &embedder{url: cfg.EmbeddingsURL, model: cfg.EmbeddingsModel, key: cfg.EmbeddingsKey, dimensions: int(cfg.EmbeddingDimensions), slots: make(chan struct{}, embedCalls)}
	if !strings.HasSuffix(e.url, "/embeddings") { // a base, with or without /v1
		e.url = strings.TrimSuffix(strings.TrimRight(e.url, "/"), "/v1") + "/v1/embeddings"
	}
	e.client = &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: embedCalls, MaxConnsPerHost: embedCalls, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the key is for this host
	}
	return e
}

// embed returns a vector for each text, in one call: errEmbeddingsAway when the provider is away, overloaded or
// too slow, errEmbeddingsFailed when it refuses or answers nonsense, the context's error when the client has gone.
func (e *embedder) embed(ctx context.Context, texts []string) ([]vector, error) {
	ctx, cancel := context.WithTimeout(ctx, embedTimeout)
	defer cancel()
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errEmbeddingsAway, ctx.Err())
	}
	vectors, pause, err := e.call(ctx, texts)
	if pause > 0 && pause <= maxEmbedPause {
		select {
		case <-time.After(pause):
			vectors, _, err = e.call(ctx, texts)
		case <-ctx.Done():
		}
	}
	return vectors, err
}

// call asks once, and once more where the provider does not know the field "dimensions". pause is the time
// after which it is worth asking again, 0 where it is not.
func (e *embedder) call(ctx context.Context, texts []string) (vectors []vector, pause time.Duration, err error) {
	dimensions := e.dimensions
	if e.bare.Load() {
		dimensions = 0
	}
	status, header, body, err := e.post(ctx, texts, dimensions)
	if err == nil && dimensions > 0 && (status == http.StatusBadRequest || status == http.StatusUnprocessableEntity) {
		if status, header, body, err = e.post(ctx, texts, 0); err == nil && status == http.StatusOK {
			e.bare.Store(true)
		}
	}
	switch {
	case err != nil:
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the URL, which may hold a secret
		}
		return nil, 0, fmt.Errorf("%w: %w", errEmbeddingsAway, err)
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		pause = embedPause
		seconds, err := strconv.Atoi(header.Get("Retry-After")) // out of range, it is the largest
		if seconds >= 0 && (err == nil || errors.Is(err, strconv.ErrRange)) {
			pause = max(time.Duration(min(seconds, 3600))*time.Second, time.Millisecond) // an hour is as good as more, which overflows
		}
		return nil, pause, fmt.Errorf("%w: status %d", errEmbeddingsAway, status)
	case status >= 500:
		return nil, 0, fmt.Errorf("%w: status %d", errEmbeddingsAway, status)
	case status != http.StatusOK:
		return nil, 0, fmt.Errorf("%w: status %d", errEmbeddingsFailed, status)
	}
	vectors, err = readEmbeddings(body, len(texts), e.dimensions)
	return vectors, 0, err
}

// post sends one request, without dimensions where they are 0, and reads the answer whole, as far as it may be long.
func (e *embedder) post(ctx context.Context, texts []string, dimensions int) (status int, header http.Header, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, embedAttempt)
	defer cancel()
	question, err := json.Marshal(struct {
		Model      string   `json:"model"`
		Input      []string `json:"input"`
		Format     string   `json:"encoding_format"`
		Dimensions int      `json:"dimensions,omitempty"`
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
	limit := int64(64<<10 + len(texts)*e.dimensions*32) // a number has some 20 characters
	body, err = io.ReadAll(io.LimitReader(answer.Body, limit))
	return answer.StatusCode, answer.Header, body, err
}

// readEmbeddings reads a provider's answer: n vectors, each under its index once.
func readEmbeddings(body []byte, n, dimensions int) ([]vector, error) {
	var answer struct {
		Data []struct {
			Index     int             `json:"index"`
			Embedding json.RawMessage `json:"embedding"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Data) != n {
		return nil, fmt.Errorf("%w: it is not a list of %d embeddings", errEmbeddingsFailed, n)
	}
	vectors := make([]vector, n)
	for _, d := range answer.Data {
		if d.Index < 0 || d.Index >= n || vectors[d.Index] != nil {
			return nil, fmt.Errorf("%w: its indexes are not 0 to %d, each once", errEmbeddingsFailed, n-1)
		}
		if len(d.Embedding) == 0 || d.Embedding[0] != '[' {
			return nil, fmt.Errorf("%w: an embedding is no array", errEmbeddingsFailed)
		}
		v, refusal := (&scanner{text: d.Embedding}).vector(dimensions)
		if refusal != "" {
			return nil, fmt.Errorf("%w: an embedding %s", errEmbeddingsFailed, refusal)
		}
		vectors[d.Index] = v
	}
	return vectors, nil
}
