package main

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// timelineCmd tells the story of each connection that the filter selects.
type timelineCmd struct {
	Output string  `short:"o" group:"Output" enum:"text,json" default:"text" placeholder:"FORMAT" help:"text or json; default ${default}."`
	JSON   bool    `short:"j" group:"Output" help:"-o json: one object per connection."`
	SVG    *string `name:"svg" placeholder:"FILE" group:"Output" help:"At the end, also write the first ${pictured} stories to this file as a picture."`

	followFlags `embed:"" group:"Filters (of connections, by either end)"`

	Count        count `short:"n" placeholder:"COUNT" group:"Source and end" help:"Stop after this many connections."`
	tracingFlags `embed:""`
}

// storyWriter prints stories.
type storyWriter interface {
	Write(*timeline.Story) error
	Clocks(timeline.Clocks) error
	Flush() error
}

func (c *timelineCmd) writer(w io.Writer) storyWriter {
	if c.JSON || c.Output == "json" {
		return output.NewTimelineJSON(w)
	}
	return output.NewTimeline(w, !speaksUTF8(), c.names())
}

// names are those of two recordings.
func (c *timelineCmd) names() (names [2]string) {
	copy(names[:], c.Read)
	return names
}

// storyPicture is a storyWriter that draws stories as well, before they are printed: nobody may
// read what is. Then it can be closed all the same.
type storyPicture struct {
	storyWriter
	mu      sync.Mutex // a run that was left behind may go on
	picture *output.TimelinePicture
	file    *os.File
}

func (p *storyPicture) Write(s *timeline.Story) error {
	p.mu.Lock()
	p.picture.Write(s)
	p.mu.Unlock()
	return p.storyWriter.Write(s)
}

func (p *storyPicture) Clocks(c timeline.Clocks) error {
	p.mu.Lock()
	p.picture.Clocks(c)
	p.mu.Unlock()
	return p.storyWriter.Clocks(c)
}

// close writes the picture.
func (p *storyPicture) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return pictureError(errors.Join(p.picture.Close(), p.file.Close()))
}

// maxStories is how many ends of connections are followed at once, unless --max-sockets is
// given: each takes more than in the other views.
const maxStories = 1 << 16

// Run tells stories until the source ends or the user has enough.
func (c *timelineCmd) Run(e *env) error {
	if c.Read == nil {
		c.idsFirst(e)
	}
	filter, err := c.filter()
	if err != nil {
		return err
	}
	if len(c.Read) > 2 || len(c.Read) == 2 && c.Read[0] == c.Read[1] {
		return usageError{errors.New("-r takes one recording, or two different ones: one of each end")}
	}
	file, err := openPicture(c.SVG)
	if err != nil {
		return err
	}
	writer := c.writer(e.stdout)
	if file == nil {
		return c.tell(e, filter, writer)
	}
	drawn := &storyPicture{storyWriter: writer, picture: output.NewTimelinePicture(file, c.names()), file: file}
	return withPicture(c.tell(e, filter, drawn), drawn.close())
}

// tell tells the stories of the connections that the filter selects.
func (c *timelineCmd) tell(e *env, filter tcp.Filter, writer storyWriter) error {
	config := timeline.Config{Max: maxStories, Filter: filter, Limit: uint64(c.Count), Show: writer.Write, Flush: writer.Flush}
	if c.MaxSockets != nil {
		config.Max = int(*c.MaxSockets)
	}
	if len(c.Read) == 2 {
		if c.Record != nil || c.Rotate != nil {
			return usageError{errors.New("--record takes the events of one host: give one -r")}
		}
		return c.pair(e, config, writer)
	}
	var collector *timeline.Collector
	all := followFlags{filterFlags: filterFlags{selectFlags: selectFlags{IPv4: c.IPv4, IPv6: c.IPv6}}}
	return c.run(e, &all, view{
		open: func(_ pipeline.Source, offset int64) (pipeline.Consumer, error) {
			config.Offset = offset
			collector = timeline.NewCollector(config)
			return collector, nil
		},
		missing: func() []string { return c.missing(collector.Forgotten(), collector.Unjudged()) },
	})
}

// missing says what is not told.
func (c *timelineCmd) missing(forgotten uint64, unjudged tcp.Unjudged) (parts []string) {
	parts = append(parts, counted(forgotten, "%d ends of connections not followed (raise --max-sockets)")...)
	parts = append(parts, output.Unjudged(unjudged)...)
	return append(parts, whereFailed(c.Where.failed())...)
}

// chained is the first of two recordings: to stop it is to stop the second too.
type chained struct {
	recorded
	next recorded
}

func (c chained) Stop() {
	c.recorded.Stop()
	c.next.Stop()
}

// pair tells the stories of two recordings, one of each host. Both are opened before anything
// is given up.
func (c *timelineCmd) pair(e *env, config timeline.Config, writer storyWriter) error {
	first, err := e.openRecording(c.Read[0])
	if err != nil {
		return err
	}
	defer first.Close()
	second, err := e.openRecording(c.Read[1])
	if err != nil {
		return err
	}
	defer second.Close()
	pair := timeline.NewPair(config)
	var lost uint64
	for i, source := range []pipeline.Source{chained{first, second}, second} {
		run := pipeline.Config{Duration: time.Duration(c.Duration), Output: e.stdout.File()}
		if i == 0 {
			run.Confine = first.config(nil).Confine
		}
		counts, err := pipeline.Run(e.ctx, run, source, pair.Collector(i))
		if err != nil {
			return err
		}
		lost += counts.Lost
	}
	stories, clocks := pair.Join()
	err = writer.Clocks(clocks)
	for i := 0; i < len(stories) && err == nil; i++ {
		err = writer.Write(stories[i])
	}
	a := account{counts: pipeline.Counts{Lost: lost}, view: c.missing(pair.Forgotten(), pair.Unjudged())}
	return e.finish(err, a.ofRecording())
}
