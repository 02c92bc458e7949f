package main

// config.go is the manual of the settings: the tags of config are what -h prints and what is enforced.
// A setting NAME comes from the environment, or from a file .env in the working directory, which the
// environment overrides. NAME_FILE names a file to read it from, as container secrets are given. An
// empty value counts as none. Values are never printed: any of them may be a secret in the wrong place.

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

type config struct {
	AppName             string         `env:"APP_NAME" default:"Latch" doc:"name of the service; refused as a password"`
	Debug               bool           `env:"DEBUG" default:"false" doc:"log at debug level, and accept a SECRET_KEY marked development-only"`
	Docs                bool           `env:"DOCS" default:"true" doc:"serve /docs and /openapi.json"`
	Host                string         `env:"HOST" default:"127.0.0.1" doc:"address to listen on; the image sets 0.0.0.0"`
	Port                int64          `env:"PORT" min:"1" max:"65535" doc:"port to listen on (8000; in development the next that is free)"`
	APIPrefix           string         `env:"API_V1_PREFIX" default:"/api/v1" doc:"path before every endpoint"`
	DatabaseURL         string         `env:"DATABASE_URL" doc:"postgresql://user:password@host:5432/name; unset: development, with a private PostgreSQL under .data/"`
	DatabaseMaxConns    int64          `env:"DATABASE_MAX_CONNS" default:"8" min:"1" max:"1000" doc:"most connections to PostgreSQL; 4 to 8 serve a few cores best"`
	DatabaseEcho        bool           `env:"DATABASE_ECHO" default:"false" doc:"log statements and durations, never arguments"`
	SecretKeys          []string       `env:"SECRET_KEY" doc:"key of 32 bytes or more (openssl rand -hex 32); several with commas: the first signs, all verify; required with DATABASE_URL"`
	Algorithm           string         `env:"ALGORITHM" default:"HS256" enum:"HS256" doc:"how tokens are signed"`
	AccessMinutes       int64          `env:"ACCESS_TOKEN_EXPIRE_MINUTES" default:"30" min:"1" max:"1440" doc:"lifetime of an access token"`
	RefreshDays         int64          `env:"REFRESH_TOKEN_EXPIRE_DAYS" default:"7" min:"1" max:"30" doc:"how long a session lives without a refresh; 30 days in all"`
	RefreshGrace        int64          `env:"REFRESH_GRACE_SECONDS" default:"10" min:"0" max:"300" doc:"how long a spent refresh token still gets its successor"`
	RegistrationOpen    bool           `env:"REGISTRATION_OPEN" default:"true" doc:"whether anyone may register"`
	CORSOrigins         []string       `env:"CORS_ORIGINS" doc:"origins whose pages may call the API, such as https://app.example.com; exact, with commas"`
	TrustedProxies      []netip.Prefix `env:"TRUSTED_PROXIES" doc:"addresses or networks whose X-Forwarded-For and -Proto are believed, with commas"`
	EmbeddingDimensions int64          `env:"EMBEDDING_DIMENSIONS" default:"384" min:"1" max:"4000" doc:"numbers in an embedding; fixed at the first migration"`
	EmbeddingsURL       string         `env:"EMBEDDINGS_URL" doc:"provider of embeddings that speaks OpenAI's /v1/embeddings, as https://api.openai.com/v1; unset: clients bring their own"`
	EmbeddingsModel     string         `env:"EMBEDDINGS_MODEL" doc:"the provider's model; fixed at the first start with one"`
	EmbeddingsKey       string         `env:"EMBEDDINGS_API_KEY" doc:"the provider's key, sent as a bearer token"`
	TextSearch          string         `env:"TEXT_SEARCH_CONFIG" default:"simple" doc:"PostgreSQL's text search configuration, as english; fixed at the first migration"`
	LogLevel            string         `env:"LOG_LEVEL" enum:"debug,info,warn,error" doc:"least level that is logged (info; debug with DEBUG)"`
	LogFormat           string         `env:"LOG_FORMAT" enum:"json,text" doc:"form of the log (json; text in development)"`
	MetricsAddr         string         `env:"METRICS_ADDR" doc:"port, or address:port, of /metrics for Prometheus; loopback unless it names a host; unset: none"`
	ShutdownDelay       int64          `env:"SHUTDOWN_DELAY" default:"0" min:"0" max:"300" doc:"seconds between failing /health/db and closing, for load balancers to notice"`
}

// printSettings writes the table of settings, in columns as wide as the longest name and the longest default.
func printSettings(w io.Writer) {
	for f := range reflect.TypeFor[config]().Fields() {
		fmt.Fprintf(w, "  %-27s  %-9s  %s\n", f.Tag.Get("env"), f.Tag.Get("default"), f.Tag.Get("doc"))
	}
}

// loadConfig reads all settings. The error joins every problem, a line each, without values.
func loadConfig(getenv func(string) string, dotenv string) (*config, error) {
	cfg := &config{}
	file, problems := parseDotEnv(dotenv)
	for f, v := range reflect.ValueOf(cfg).Elem().Fields() {
		name := f.Tag.Get("env")
		text, err := lookUp(name, getenv, func(name string) string { return file[name] })
		if text = cmp.Or(text, f.Tag.Get("default")); err == nil && text != "" {
			err = set(v.Addr().Interface(), text, f.Tag)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
	}
	return cfg, errors.Join(append(problems, cfg.check()...)...)
}

// lookUp returns the text of a setting, from the first source that has it.
func lookUp(name string, sources ...func(string) string) (string, error) {
	for _, get := range sources {
		text, from := get(name), get(name+"_FILE")
		switch {
		case text != "" && from != "":
			return "", fmt.Errorf("is given together with %s_FILE; unset one", name)
		case from != "":
			content, err := os.ReadFile(from)
			if err != nil {
				return "", fmt.Errorf("the file that %s_FILE names cannot be read", name)
			}
			return strings.TrimRight(string(content), "\r\n"), nil
		case text != "":
			return text, nil
		}
	}
	return "", nil
}

// set parses text into a field of config, which to points to.
func set(to any, text string, tags reflect.StructTag) (err error) {
	switch to := to.(type) {
	case *string:
		if enum := tags.Get("enum"); enum != "" && !slices.Contains(strings.Split(enum, ","), text) {
			return fmt.Errorf("must be one of %s", strings.ReplaceAll(enum, ",", ", "))
		}
		*to = text
	case *bool:
		if *to, err = strconv.ParseBool(strings.ToLower(text)); err != nil {
			return errors.New("must be true or false")
		}
	case *int64:
		lowest, _ := strconv.ParseInt(tags.Get("min"), 10, 64)
		highest, _ := strconv.ParseInt(tags.Get("max"), 10, 64)
		if *to, err = strconv.ParseInt(text, 10, 64); err != nil || *to < lowest || *to > highest {
			return fmt.Errorf("must be a whole number from %d to %d", lowest, highest)
		}
	case *[]string:
		for item := range strings.SplitSeq(text, ",") {
			*to = append(*to, strings.TrimSpace(item))
		}
	case *[]netip.Prefix:
		for item := range strings.SplitSeq(text, ",") {
			network, err := netip.ParsePrefix(strings.TrimSpace(item))
			if one, notOne := netip.ParseAddr(strings.TrimSpace(item)); notOne == nil {
				network, err = one.Prefix(one.BitLen())
			}
			if err != nil {
				return errors.New("must be addresses or networks such as 10.0.0.0/8, with commas")
			}
			*to = append(*to, network.Masked())
		}
	}
	return nil
}

// check finds what no single field shows, and completes the defaults that depend on others.
func (c *config) check() (problems []error) {
	fault := func(bad bool, text string) {
		if bad {
			problems = append(problems, errors.New(text))
		}
	}
	fits := func(text, pattern string) bool { return regexp.MustCompile(pattern).MatchString(text) }
	if after, ok := strings.CutPrefix(c.DatabaseURL, "postgresql+asyncpg://"); ok { // SQLAlchemy's spelling
		c.DatabaseURL = "postgresql://" + after
	}
	_, err := pgxpool.ParseConfig(c.DatabaseURL) // its error would hold the URL
	fault(c.DatabaseURL != "" && (err != nil || !fits(c.DatabaseURL, `^postgres(ql)?://`)),
		"DATABASE_URL: must be a URL such as postgresql://user:password@host:5432/name; signs in the password are percent-encoded, and files that it names must be there")
	fault(c.DatabaseURL != "" && len(c.SecretKeys) == 0, "SECRET_KEY: is required with DATABASE_URL; make one with: openssl rand -hex 32")
	for i, key := range c.SecretKeys {
		if why := weakKey(key, c.Debug); why != "" {
			problems = append(problems, fmt.Errorf("SECRET_KEY: key %d %s; make one with: openssl rand -hex 32", i+1, why))
		}
		fault(slices.Contains(c.SecretKeys[:i], key), "SECRET_KEY: the same key stands there twice")
	}
	fault(!fits(c.MetricsAddr, `^(([^:]*:|\[[0-9a-f:]+\]:)?[0-9]{1,5})?$`), "METRICS_ADDR: must be a port or address:port, as 9090 or 10.0.0.5:9090")
	fault(!fits(c.APIPrefix, `^(/[A-Za-z0-9._-]+)+$`) || path.Clean(c.APIPrefix) != c.APIPrefix,
		"API_V1_PREFIX: must be a path such as /api/v1, without a slash at the end")
	u, err := url.Parse(c.EmbeddingsURL)
	fault(c.EmbeddingsURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.ContainsAny(c.EmbeddingsURL, "?#")),
		"EMBEDDINGS_URL: must be an http or https URL without a query, as https://api.openai.com/v1")
	fault((c.EmbeddingsURL == "") != (c.EmbeddingsModel == ""), "EMBEDDINGS_MODEL: goes together with EMBEDDINGS_URL; set both or none")
	fault(!fits(c.EmbeddingsKey, `^[!-~]*$`), "EMBEDDINGS_API_KEY: must be printable ASCII without spaces, as it goes into a header")
	fault(!fits(c.TextSearch, `^[a-z_][a-z0-9_]*$`), "TEXT_SEARCH_CONFIG: must be the name of a configuration, as simple or english")
	for _, origin := range c.CORSOrigins {
		u, err := url.Parse(origin)
		fault(err != nil || u.Host == "" || u.Scheme+"://"+u.Host != origin || origin != lowerASCII(origin) || strings.Contains(origin, "*"),
			"CORS_ORIGINS: must be exact origins such as https://app.example.com, in lower case and without a path; * is not one")
	}
	c.LogLevel = cmp.Or(c.LogLevel, map[bool]string{true: "debug", false: "info"}[c.Debug])
	c.LogFormat = cmp.Or(c.LogFormat, map[bool]string{true: "text", false: "json"}[c.DatabaseURL == ""])
	return problems
}

// publicKeys are what keys hold that stand in examples and documentation, where everybody can read them.
var publicKeys = []string{
	"09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7", // FastAPI's tutorial
	"a-string-secret-at-least-256-bits-long",                           // jwt.io
	"change-in-production", "changeme", "change-me", "change_me", "change-this", "changethis", "your-secret", "your_secret", "super-secret", "placeholder",
}

// weakKey says why a signing key must not be used, or "".
func weakKey(key string, debug bool) string {
	lower, distinct := strings.ToLower(key), slices.Compact(slices.Sorted(slices.Values([]byte(key))))
	switch {
	case len(key) < 32: // the size of the hash: RFC 7518, section 3.2
		return "has fewer than 32 bytes"
	case len(distinct) < 8 || strings.Contains((key + key)[1:2*len(key)-1], key): // a random hex key has all 16 digits but for luck
		return "repeats the same bytes"
	case slices.ContainsFunc(publicKeys, func(known string) bool { return strings.Contains(lower, known) }):
		return "is a placeholder"
	case strings.Contains(lower, "development-only") && !debug:
		return "is for development only (DEBUG=true)"
	}
	return ""
}

// A value of .env may stand in single quotes, taken as it is, or in double quotes, with \\ \" \n \$; without
// quotes it ends before a space or tab and #, which start a comment. Nothing is expanded.
var (
	dotEnvLine    = regexp.MustCompile(`^(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*([^\x00]*)$`)
	dotEnvValue   = regexp.MustCompile(`^(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|([^'"#].*?)(?:[ \t]|$)|)[ \t]*(?:#.*)?$`)
	dotEnvEscapes = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n", `\$`, "$")
)

// parseDotEnv reads lines NAME=value.
func parseDotEnv(text string) (values map[string]string, problems []error) {
	values = map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		bad := func(why string) { problems = append(problems, fmt.Errorf(".env: line %d %s", i+1, why)) }
		m := dotEnvLine.FindStringSubmatch(line)
		if m == nil {
			bad("is not NAME=value")
			continue
		}
		name, v := m[1], dotEnvValue.FindStringSubmatch(m[2])
		_, twice := values[name]
		switch {
		case twice:
			bad("sets a name that was set before")
		case v == nil:
			bad("has a quote that is not closed, or text behind it")
			values[name] = ""
		default:
			values[name] = v[1] + dotEnvEscapes.Replace(v[2]) + strings.TrimSpace(v[3])
		}
	}
	return values, problems
}
