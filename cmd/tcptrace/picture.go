package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/tcptrace/tcptrace/internal/confine"
)

// openPicture opens the file of --svg, before the command gives up that it can. It returns nil
// if there is none.
func openPicture(path *string) (*os.File, error) {
	if path == nil {
		return nil, nil
	}
	file, err := confine.Create(*path)
	return file, pictureError(err)
}

// pictureError says what an error is about. It returns nil for nil.
func pictureError(err error) error {
	if err != nil {
		return fmt.Errorf("cannot write the picture: %w", err)
	}
	return nil
}

// withPicture adds the error of a picture to that of what was printed. That nobody read all of
// that is none any more, where the picture failed.
func withPicture(printed, picture error) error {
	if picture != nil && errors.Is(printed, syscall.EPIPE) {
		return picture
	}
	return errors.Join(printed, picture)
}
