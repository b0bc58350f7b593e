package serve

import (
	"fmt"
	"io"
	"path/filepath"

	"go.yaml.in/yaml/v2"

	"github.com/prometheus/exporter-toolkit/web"
)

// WebFolders returns the folders that hold the file of a web configuration, whose content r
// yields, and the files that it names. They are read for each connection: a new certificate
// comes into force without a signal, as a new file or a new link.
func WebFolders(path string, r io.Reader) (folders []string, err error) {
	if path, err = filepath.Abs(path); err != nil { // the content of the file is not in an error
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(r, maxWebConfig))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var c web.Config
	if yaml.Unmarshal(content, &c) != nil {
		return nil, fmt.Errorf("%s is no web configuration of prometheus/exporter-toolkit", path)
	}
	files := []string{path}
	c.TLSConfig.SetDirectory(filepath.Dir(path))
	for _, named := range []string{c.TLSConfig.TLSCertPath, c.TLSConfig.TLSKeyPath, c.TLSConfig.ClientCAs} {
		if named != "" {
			files = append(files, named)
		}
	}
	for _, file := range files {
		folders = append(folders, filepath.Dir(file))
		if real, err := filepath.EvalSymlinks(file); err == nil {
			folders = append(folders, filepath.Dir(real))
		}
	}
	return folders, nil
}

// CheckWeb reads the file of a web configuration and those that it names, and returns what is wrong
// with them.
func CheckWeb(path string) error { return web.Validate(path) }

// maxWebConfig is how much of a web configuration is read.
const maxWebConfig = 1 << 20
