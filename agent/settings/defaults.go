package settings

import "time"

// Defaults of settings that are not set.
const (
	DefaultDeadline     = 10 * time.Minute
	DefaultReportPrefix = "lecafe-reports"
	DefaultObjectBytes  = 1 << 20
	DefaultTreeBytes    = 16 << 20
	DefaultTreeFiles    = 1000
	DefaultObjectMode   = "0640"
	DefaultEnvMode      = "0644"
	DefaultOrdersGroup  = "lecafe-orders"
	DefaultSpoolBytes   = 1 << 30
	DefaultDrain        = 20 * time.Second
)

// WithDefaults returns s with what is not set filled in. s keeps its lists.
func (s Settings) WithDefaults() Settings {
	if s.Bootstrap.Deadline == 0 {
		s.Bootstrap.Deadline = DefaultDeadline
	}
	if s.Report.S3.Bucket != "" && s.Report.S3.Prefix == "" {
		s.Report.S3.Prefix = DefaultReportPrefix
	}
	if s.Report.Console == nil {
		yes := true
		s.Report.Console = &yes
	}
	objects := make([]Object, len(s.Config))
	for i, o := range s.Config {
		if o.MaxBytes == 0 {
			o.MaxBytes = DefaultObjectBytes
			if o.Tree() {
				o.MaxBytes = DefaultTreeBytes
			}
		}
		if o.MaxFiles == 0 && o.Tree() {
			o.MaxFiles = DefaultTreeFiles
		}
		if o.Mode == "" {
			o.Mode = DefaultObjectMode
		}
		objects[i] = o
	}
	if s.Config != nil {
		s.Config = objects
	}
	env := make([]EnvFile, len(s.Env))
	for i, e := range s.Env {
		if e.Mode == "" {
			e.Mode = DefaultEnvMode
		}
		env[i] = e
	}
	if s.Env != nil {
		s.Env = env
	}
	if s.Orders.Group == "" {
		s.Orders.Group = DefaultOrdersGroup
	}
	if s.Orders.MaxBytes == 0 {
		s.Orders.MaxBytes = DefaultSpoolBytes
	}
	if s.Orders.Drain == 0 {
		s.Orders.Drain = DefaultDrain
	}
	return s
}
