package serve

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The page: complete without its script, which brings its texts up to date. It asks no other
// host, and a browser is told to let it do nothing else.

//go:embed web
var pageFiles embed.FS

// pagePolicy lets a browser load what is served here alone, run no script that is written into
// the page, and have no script make elements of text.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

const (
	maxViews = 64          // answers for pages that are made and written at once
	viewAge  = time.Second // for so long a snapshot serves all pages

)

// view is what the template gets.
type view struct {
	*overview
	Version string
	Diagram template.HTML // of output.Live, which escapes
	Spare   []struct{}    // rows of services that are empty now
	Rows    []struct{}    // of sockets
	Names   []string      // of states
}

// recent keeps a snapshot for all pages: what they cost the capture does not depend on how many
// they are. While one waits for the next snapshot, the others get the last one: hundreds that
// wait would have to be refused.
type recent struct {
	lock   sync.Mutex
	asking bool
	made   time.Time
	last   *snapshot // nil: none, or it is too old
}

// get returns one that is younger than viewAge, or than twice that while it is made anew.
func (r *recent) get(ctx context.Context, c *collector) (*snapshot, error) {
	if s := r.ready(); s != nil {
		return s, nil
	}
	asked := time.Now()
	s, err := c.snapshots.get(ctx, c.stop)
	r.lock.Lock()
	defer r.lock.Unlock()
	r.asking = false
	if err == nil && asked.After(r.made) {
		r.last, r.made = s, asked
		time.AfterFunc(2*viewAge, func() { r.drop(s) })
	}
	return s, err
}

// ready returns nil if the caller is to ask.
func (r *recent) ready() *snapshot {
	r.lock.Lock()
	defer r.lock.Unlock()
	if age := time.Since(r.made); r.last != nil && (age < viewAge || r.asking && age < 2*viewAge) {
		return r.last
	}
	r.asking = true
	return nil
}

// drop forgets a snapshot, which can take 20 MB, when it is too old to be of use.
func (r *recent) drop(s *snapshot) {
	r.lock.Lock()
	defer r.lock.Unlock()
	if r.last == s {
		r.last = nil
	}
}

// page adds the page to the paths.
func (d *daemon) page(mux *http.ServeMux) {
	views, last := make(chan struct{}, maxViews), new(recent)
	content := template.Must(template.New("page.html").Funcs(template.FuncMap{"join": strings.Join}).ParseFS(pageFiles, "web/page.html"))
	limited := func(f http.HandlerFunc) http.Handler { return limited(views, f) }
	mux.Handle("GET /{$}", visited(limited(func(w http.ResponseWriter, r *http.Request) {
		if o := d.overview(w, r, last); o != nil {
			d.show(w, content, o)
		}
	})))
	mux.Handle("GET "+pathOverview, guarded(limited(func(w http.ResponseWriter, r *http.Request) {
		if o := d.overview(w, r, last); o != nil {
			w.Header().Set("Content-Type", oneObject)
			_ = json.NewEncoder(w).Encode(o) // an error: the client has gone
		}
	})))
	for name, kind := range map[string]string{"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"} {
		text, err := fs.ReadFile(pageFiles, "web/"+name)
		if err != nil {
			panic(err) // it is part of this program
		}
		mux.Handle("GET /"+name, asset(kind, text))
	}
	mux.Handle("GET /diagram.css", asset("text/css", []byte(output.LiveStyle())))
}

// asset serves what is the same for everybody.
func asset(kind string, text []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind+"; charset=utf-8")
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		_, _ = w.Write(text) // an error: the client has gone
	})
}

// overview makes what is asked for, or refuses it and returns nil.
func (d *daemon) overview(w http.ResponseWriter, r *http.Request, last *recent) *overview {
	ctx, cancel := context.WithTimeout(r.Context(), answerLimit)
	defer cancel()
	s, err := last.get(ctx, d.collector)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, unanswered(err))
		return nil
	}
	service := r.URL.Query().Get("service")
	o, found := s.overview(service)
	if !found {
		refuse(w, http.StatusNotFound, fmt.Errorf("no service %q has a socket, or had one within the last minute", service))
		return nil
	}
	return o
}

// show writes the page.
func (d *daemon) show(w http.ResponseWriter, content *template.Template, o *overview) {
	v := view{
		overview: o, Version: label(d.cfg.Version), Diagram: template.HTML(o.live.SVG()),
		Spare: make([]struct{}, maxListed-len(o.Services)), Rows: make([]struct{}, maxListed),
	}
	for _, s := range tcp.States() {
		v.Names = append(v.Names, s.String())
	}
	var b bytes.Buffer
	if err := content.Execute(&b, v); err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(b.Bytes()) // an error: the client has gone
}
