package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// recordFlags say where a recording goes, beside what is shown.
type recordFlags struct {
	Record *string   `placeholder:"FILE" help:"Also write a recording to this new file, for -r; one that ends in .gz or .zst is compressed."`
	Rotate *rotation `placeholder:"SIZE[,COUNT]" help:"Write it to several files of this size in turn, default 10: 100M, 1G,5. The oldest is written anew."`
}

// rotation is how a recording is spread over files.
type rotation struct {
	size  int64 // of one
	files int
}

// check returns a usageError for flags that make no sense.
func (f *recordFlags) check() error {
	switch {
	case f.Record == nil && f.Rotate != nil:
		return usageError{errors.New("--rotate is for --record")}
	case f.Record != nil && (*f.Record == "" || *f.Record == "-"):
		return usageError{errors.New("--record needs the name of a file: -j writes a recording to the standard output")}
	}
	return nil
}

// recordFiles are the files of a recording that is to be written; nil: none is asked for.
type recordFiles struct {
	files []*os.File
	size  int64 // of each, if there are several
}

// create makes the files, all of them: later no file can be opened.
func (f *recordFlags) create() (*recordFiles, error) {
	if f.Record == nil {
		return nil, nil //nolint:nilnil // none is asked for
	}
	paths, r := []string{*f.Record}, &recordFiles{}
	if f.Rotate != nil {
		paths, r.size = rotatedNames(*f.Record, f.Rotate.files), f.Rotate.size
	}
	for _, path := range paths {
		file, err := confine.CreateNew(path)
		if err != nil {
			return nil, cannotRecord(err) // what was made is empty, and can be used again
		}
		r.files = append(r.files, file)
	}
	return r, nil
}

// rotatedNames numbers the files of a set, so that ls sorts them and the suffix stays.
func rotatedNames(path string, files int) (names []string) {
	rest, suffix := recording.CutSuffix(path)
	width := len(fmt.Sprint(files))
	for i := range files {
		names = append(names, fmt.Sprintf("%s.%0*d%s", rest, width, i+1, suffix))
	}
	return names
}

// add adds to what a command needs what it takes to write the files.
func (r *recordFiles) add(n confine.Needs) confine.Needs {
	n.Truncate = r != nil && len(r.files) > 1
	return n
}

func cannotRecord(err error) error { return fmt.Errorf("cannot write the recording: %w", err) }

// run is pipeline.Run, which also writes the recording.
func (r *recordFiles) run(ctx context.Context, config pipeline.Config, source pipeline.Source, to pipeline.Consumer) (pipeline.Counts, error) {
	if r == nil {
		return pipeline.Run(ctx, config, source, to)
	}
	file, err := recording.NewWriter(recording.WriterConfig{Files: r.files, Size: r.size, Failed: source.Stop})
	if err != nil {
		return pipeline.Counts{}, cannotRecord(err)
	}
	tee := &recorder{Consumer: to, lines: output.NewJSON(file), file: file}
	counts, err := pipeline.Run(ctx, config, source, tee)
	return counts, tee.end(err)
}

// recorder is a consumer that writes what it takes to a recording, and then hands it on. So
// a recording has what was shown, and more if what shows it hangs.
type recorder struct {
	pipeline.Consumer
	lines *output.JSON
	file  *recording.Writer
	err   error // why the recording is not whole
}

func (r *recorder) Event(e *tcp.Event) error {
	if r.err = r.lines.Write(e); r.err != nil {
		return pipeline.Enough
	}
	return r.Consumer.Event(e)
}

func (r *recorder) Idle() error {
	if r.err = r.lines.Flush(); r.err != nil {
		return pipeline.Enough
	}
	return r.Consumer.Idle()
}

// Close shows what was seen also where it could not be recorded.
func (r *recorder) Close(now uint64) error {
	if r.err == nil {
		r.err = r.lines.Flush()
	}
	if err := r.file.Close(); r.err == nil {
		r.err = err
	}
	shown := r.Consumer.Close(now)
	if r.err != nil {
		return errRecord{r.err}
	}
	return shown
}

// errRecord says that the recording is not whole.
type errRecord struct{ error }

func (e errRecord) Error() string { return cannotRecord(e.error).Error() }

// recordLimit is how long the end of a recording may take after a run that did not end in order.
const recordLimit = 200 * time.Millisecond

// end ends the recording of a run that ended with err, and returns what to say.
func (r *recorder) end(err error) error {
	if _, ok := errors.AsType[errRecord](err); ok {
		return err
	}
	left := errors.Is(err, pipeline.ErrBlocked) || errors.Is(err, pipeline.ErrUnfinished)
	if !left { // what is left behind may still use lines
		_ = r.lines.Flush() // an error is that of Close
	}
	failed := r.file.CloseWithin(recordLimit)
	switch {
	case failed == nil:
		return err
	case err == nil, errors.Is(err, syscall.EPIPE): // which would be a success
		return cannotRecord(failed)
	}
	return errors.Join(err, cannotRecord(failed))
}
