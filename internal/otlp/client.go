package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// counts is what became of the records or points of one signal.
type counts struct {
	sent, rejected, failed, dropped atomic.Uint64
}

// client talks to the receiver of one signal.
type client struct {
	target  Target
	http    *http.Client
	failed  *atomic.Uint64 // requests
	say     func(string)
	version string
}

// maxAnswer is how much of an answer is read.
const maxAnswer = 64 << 10

func newClient(t Target, failed *atomic.Uint64, version string, say func(string)) *client {
	// No proxy: the ports that may be connected to are settled when the daemon starts.
	transport := &http.Transport{
		TLSClientConfig: t.TLS, ForceAttemptHTTP2: true, MaxConnsPerHost: 1, IdleConnTimeout: 90 * time.Second,
		ResponseHeaderTimeout: t.Timeout, TLSHandshakeTimeout: t.Timeout, MaxResponseHeaderBytes: 16 << 10,
	}
	refuseRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client{
		target: t, failed: failed, say: say, version: version,
		http: &http.Client{Transport: transport, Timeout: t.Timeout, CheckRedirect: refuseRedirect},
	}
}

// temporary is an error after which a request may be sent again.
type temporary struct{ error }

func (t temporary) Unwrap() error { return t.error }

func isTemporary(err error) bool {
	_, is := errors.AsType[temporary](err)
	return is
}

// post sends a request and returns the answer. After an error that is temporary, after is how
// long the receiver wants us to wait at least. Each error is counted and said.
func (c *client) post(ctx context.Context, body []byte) (answer []byte, after time.Duration, err error) {
	answer, after, err = c.send(ctx, body)
	if err != nil {
		c.failed.Add(1)
		c.complain(err.Error())
	}
	return answer, after, err
}

func (c *client) send(ctx context.Context, body []byte) (answer []byte, after time.Duration, err error) {
	request, err := c.request(ctx, body)
	if err != nil {
		return nil, 0, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, 0, temporary{err}
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	switch status := response.StatusCode; {
	case status == http.StatusTooManyRequests, status == http.StatusBadGateway,
		status == http.StatusServiceUnavailable, status == http.StatusGatewayTimeout: // OTLP specification, Retryable Response Codes
		return nil, retryAfter(response.Header), temporary{c.refusal(response.Status, answer)}
	case status < 200 || status > 299:
		return nil, 0, c.refusal(response.Status, answer)
	case err != nil:
		return nil, 0, temporary{err}
	}
	return answer, 0, nil
}

func (c *client) request(ctx context.Context, body []byte) (*http.Request, error) {
	encoding := ""
	if c.target.Gzip {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, err := w.Write(body)
		if err = errors.Join(err, w.Close()); err != nil {
			return nil, err
		}
		body, encoding = packed.Bytes(), "gzip"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.target.URL.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for key, value := range c.target.Headers {
		request.Header.Set(key, value)
	}
	request.Header.Set("Content-Type", "application/x-protobuf")
	request.Header.Set("User-Agent", "tcptrace/"+c.version)
	if encoding != "" {
		request.Header.Set("Content-Encoding", encoding)
	}
	return request, nil
}

// refusal quotes the beginning of an answer.
func (c *client) refusal(status string, answer []byte) error {
	const quoted = 200
	return fmt.Errorf("%s answered %s: %q", c.target.URL.Redacted(), status, answer[:min(len(answer), quoted)])
}

// complain says what went wrong. The one that says it bounds how often.
func (c *client) complain(what string) {
	if what != "" {
		c.say("OTLP: " + what)
	}
}

// retryAfter understands seconds and dates; 0: the receiver does not say.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil {
		return bounded(time.Duration(n) * time.Second)
	}
	if at, err := http.ParseTime(text); err == nil {
		return bounded(time.Until(at))
	}
	return 0
}

// bounded keeps a receiver from silencing us for good.
func bounded(d time.Duration) time.Duration { return min(max(d, 0), 5*time.Minute) }

// jitter keeps many hosts from coming back all at once.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }
