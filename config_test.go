package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// settings are all settings, by name.
func settings() map[string]setting {
	all := map[string]setting{}
	for _, row := range (&config{}).settings() {
		all[row.name] = row
	}
	return all
}

// loadFrom is loadConfig with env as the environment.
func loadFrom(env map[string]string, dotenv string) (*config, error) {
	var environ []string
	for name, value := range env {
		environ = append(environ, name+"="+value)
	}
	return loadConfig(environ, dotenv)
}

// served is the least that a server outside development needs, and more.
func served(more ...string) map[string]string {
	env := map[string]string{"DATABASE_URL": "postgresql://u:p@db/x", "SECRET_KEY": testKey}
	for i := 0; i < len(more); i += 2 {
		env[more[i]] = more[i+1]
	}
	return env
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	got, err := loadFrom(nil, "")
	want := config{AppName: "Latch", Docs: true, EmbeddingDimensions: 384, TextSearch: "simple",
		EmbeddingsBatch: 32, EmbeddingsLoad: 20,
		Host: "127.0.0.1", APIPrefix: "/api/v1", DatabaseMaxConns: 8, Algorithm: "HS256",
		AccessMinutes: 30, RefreshDays: 7, RefreshGrace: 10, RegistrationOpen: true,
		LogLevel: "info", LogFormat: "text", SlowStatement: 1000, TokenIssuer: "latch"}
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("loadConfig of nothing = %+v, %v, want %+v", got, err, want)
	}
	got, err = loadFrom(served("DEBUG", "true"), "")
	if err != nil || got.LogFormat != "json" || got.LogLevel != "debug" {
		t.Errorf("with DATABASE_URL and DEBUG: %+v, %v, want json and debug", got, err)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	get := func(c *config, name string) any {
		for _, row := range c.settings() {
			if row.name == name {
				return reflect.ValueOf(row.dst).Elem().Interface()
			}
		}
		return nil
	}
	net := netip.MustParsePrefix
	const failover = "postgresql://u:p@a:5432,b:5432/x?target_session_attrs=read-write"
	const encrypted = "postgresql://u:p@db:5432/x?sslmode=require"
	for _, row := range []struct {
		name, text string
		want       any // nil: refused
	}{
		{"APP_NAME", "Other", "Other"},
		{"DEBUG", "TRUE", true},
		{"DEBUG", "0", false},
		{"DEBUG", "yes", true},
		{"DEBUG", "On", true},
		{"DEBUG", "2", nil},
		{"DEBUG", "none", nil},
		{"DATABASE_ECHO", "True", true},
		{"REGISTRATION_OPEN", "NO", false},
		{"REGISTRATION_OPEN", "off", false},
		{"REGISTRATION_OPEN", "false", false},
		{"HOST", "::1", "::1"},
		{"HOST", "localhost", "localhost"},
		{"HOST", "localhost:8144", nil},
		{"HOST", "127.0.0.1:8144", nil},
		{"HOST", "[::1]", nil},
		{"HOST", "http://localhost", nil},
		{"HOST", "/tmp", nil},
		{"PORT", "65535", int64(65535)},
		{"PORT", "8000\n", int64(8000)},
		{"PORT", "8000\r\n", int64(8000)},
		{"PORT", "0", nil},
		{"PORT", "65536", nil},
		{"PORT", "80a", nil},
		{"PORT", "8000.0", nil},
		{"PORT", "99999999999999999999", nil},
		{"DATABASE_MAX_CONNS", "1", nil},
		{"ACCESS_TOKEN_EXPIRE_MINUTES", "0", nil},
		{"ACCESS_TOKEN_EXPIRE_MINUTES", "15", int64(15)},
		{"REFRESH_TOKEN_EXPIRE_DAYS", "30", int64(30)},
		{"REFRESH_TOKEN_EXPIRE_DAYS", "31", nil},
		{"REFRESH_GRACE_SECONDS", "0", int64(0)},
		{"REFRESH_GRACE_SECONDS", "-1", nil},
		{"SHUTDOWN_DELAY", "300", int64(300)},
		{"SLOW_STATEMENT_MS", "0", int64(0)},
		{"SLOW_STATEMENT_MS", "1s", nil},
		{"TOKEN_ISSUER", "https://api.example.com/", "https://api.example.com/"},
		{"TOKEN_ISSUER", "two words", nil},
		{"TOKEN_ISSUER", `"`, nil},
		{"TOKEN_ISSUER", strings.Repeat("x", 201), nil},
		{"ALGORITHM", "HS256", "HS256"},
		{"ALGORITHM", "HS512", nil},
		{"ALGORITHM", "RS256", nil},
		{"ALGORITHM", "none", nil},
		{"ALGORITHM", "hs256", "HS256"},
		{"LOG_LEVEL", "warn", "warn"},
		{"LOG_LEVEL", "INFO", "info"},
		{"LOG_LEVEL", "trace", nil},
		{"LOG_FORMAT", "text", "text"},
		{"LOG_FORMAT", "xml", nil},
		{"API_V1_PREFIX", "/v2", "/v2"},
		{"API_V1_PREFIX", "/api/v1/", nil},
		{"API_V1_PREFIX", "api", nil},
		{"API_V1_PREFIX", "/", nil},
		{"API_V1_PREFIX", "/a/../b", nil},
		{"API_V1_PREFIX", "/{id}", nil},
		{"API_V1_PREFIX", "/a b", nil},
		{"DATABASE_URL", encrypted, encrypted},
		{"DATABASE_URL", "postgres://u:p@db/x", "postgres://u:p@db/x"},
		{"DATABASE_URL", "postgresql+asyncpg://u:p@db/x", "postgresql://u:p@db/x"},
		{"DATABASE_URL", failover, failover},
		{"DATABASE_URL", "postgresql+asyncpg://u:p@db:5432/x?ssl=require", encrypted},
		{"DATABASE_URL", "postgresql+asyncpg://u:p@db/x?a.b=1&ssl=verify-full",
			"postgresql://u:p@db/x?a.b=1&sslmode=verify-full"},
		{"DATABASE_URL", "postgresql+psycopg://u:p@db/x", "postgresql://u:p@db/x"},
		{"DATABASE_URL", "postgresql+psycopg2://u:p@db/x", "postgresql://u:p@db/x"},
		{"DATABASE_URL", "postgresql://u:P%40ssw0rd!@db/x", "postgresql://u:P%40ssw0rd!@db/x"},
		{"DATABASE_URL", "postgresql://u@/x?host=%2Ftmp", "postgresql://u@/x?host=%2Ftmp"},
		{"DATABASE_URL", "postgresql://u:p@[::1]:5432/x", "postgresql://u:p@[::1]:5432/x"},
		{"DATABASE_URL", "postgresql://u:p@my_db-1.local./x", "postgresql://u:p@my_db-1.local./x"},
		{"DATABASE_URL", "mysql://u:p@db/x", nil},
		{"DATABASE_URL", "sqlite:///x.db", nil},
		{"DATABASE_URL", "host=db user=u", nil},
		{"DATABASE_URL", "postgresql://u:p@db:port/x", nil},
		{"DATABASE_URL", "postgresql://u:p%@db/x", nil},
		{"DATABASE_URL", "postgresql://u:p@db/x?sslmode=maybe", nil},
		{"CORS_ORIGINS", "https://a.example.com", []string{"https://a.example.com"}},
		{"CORS_ORIGINS", "https://a.example.com, http://localhost:5173",
			[]string{"https://a.example.com", "http://localhost:5173"}},
		{"CORS_ORIGINS", `["https://a.example.com", "http://localhost:5173"]`,
			[]string{"https://a.example.com", "http://localhost:5173"}},
		{"CORS_ORIGINS", "[]", []string{}},
		{"CORS_ORIGINS", `["*"]`, nil},
		{"CORS_ORIGINS", `["https://a.example.com"`, nil},
		{"CORS_ORIGINS", "['https://a.example.com']", nil},
		{"CORS_ORIGINS", "http://[::1]:5173", []string{"http://[::1]:5173"}},
		{"CORS_ORIGINS", "capacitor://localhost", []string{"capacitor://localhost"}},
		{"CORS_ORIGINS", "*", nil},
		{"CORS_ORIGINS", "https://*.example.com", nil},
		{"CORS_ORIGINS", "null", nil},
		{"CORS_ORIGINS", "a.example.com", nil},
		{"CORS_ORIGINS", "https://a.example.com/", nil},
		{"CORS_ORIGINS", "https://a.example.com/x", nil},
		{"CORS_ORIGINS", "https://u@a.example.com", nil},
		{"CORS_ORIGINS", "https://a.example.com,", nil},
		{"CORS_ORIGINS", "https://A.example.com", nil},
		{"CORS_ORIGINS", "https://app.example.com:443", nil},
		{"CORS_ORIGINS", "http://[::1]:80", nil},
		{"CORS_ORIGINS", "http://localhost:05173", nil},
		{"CORS_ORIGINS", "http://a:443, https://a:80, http://a:8080, http://[::1:80]",
			[]string{"http://a:443", "https://a:80", "http://a:8080", "http://[::1:80]"}},
		{"METRICS_ADDR", "65535", "65535"},
		{"METRICS_ADDR", ":0", ":0"},
		{"METRICS_ADDR", "[::1]:9090", "[::1]:9090"},
		{"METRICS_ADDR", "localhost:9090", "localhost:9090"},
		{"METRICS_ADDR", "99999", nil},
		{"METRICS_ADDR", "10.0.0.5:65536", nil},
		{"METRICS_ADDR", "[::1]:99999", nil},
		{"METRICS_ADDR", "two words:9090", nil},
		{"METRICS_ADDR", "localhost:", nil},
		{"TRUSTED_PROXIES", "10.0.0.0/8", []netip.Prefix{net("10.0.0.0/8")}},
		{"TRUSTED_PROXIES", "10.1.2.3/8, ::1, 192.0.2.1",
			[]netip.Prefix{net("10.0.0.0/8"), net("::1/128"), net("192.0.2.1/32")}},
		{"TRUSTED_PROXIES", `["10.0.0.0/8","::1"]`,
			[]netip.Prefix{net("10.0.0.0/8"), net("::1/128")}},
		{"TRUSTED_PROXIES", "fe80::1%eth0", []netip.Prefix{net("fe80::1/128")}},
		{"TRUSTED_PROXIES", "10.0.0.0/33", nil},
		{"TRUSTED_PROXIES", "proxy", nil},
		{"TRUSTED_PROXIES", "10.0.0.0/8,", nil},
		{"SECRET_KEY", testKey + ", " + oldTestKey, []string{testKey, oldTestKey}},
		{"SECRET_KEY", testKey + "," + testKey, nil},
		{"SECRET_KEY", testKey + ",", nil},
	} {
		cfg, err := loadFrom(served(row.name, row.text), "")
		if row.want == nil {
			if err == nil || !strings.HasPrefix(err.Error(), row.name+": ") ||
				strings.Count(err.Error(), "\n") > 0 {
				t.Errorf("%s=%s gives %v, want one problem", row.name, row.text, err)
			}
		} else if got := get(cfg, row.name); err != nil || !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s=%s is %v, %v, want %v", row.name, row.text, got, err, row.want)
		}
	}
}

// TestDatabaseURL: what is wrong is said by name, with what to write instead and without the URL.
func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	const form = "must be a URL such as postgresql://user:password@host:5432/name; signs in the " +
		"password are percent-encoded (@ is %40), and files that it names must exist"
	for url, want := range map[string]string{
		"postgres://app:P@ssw0rd!@host/db":        form,
		"postgres://app:P@ssw0rd/x@host/db":       form,
		"postgres://app:12/34@host/db":            form,
		"postgres://app:P@ssw0rd!":                form,
		"postgres://app:12?ssw0rd@host/db":        form,
		"postgres://app:12#ssw0rd@host/db":        form,
		"postgres://app:ssw0rd@ho!st/db":          form,
		"postgres://app:ssw0rd@host,ho%20st/db":   form,
		"postgres://app:ssw0rd@host/db?host=x%21": form,
		"postgres://app:ssw0rd@host/db?ssl=maybe": "has ssl, which is another driver's; " +
			"write sslmode=require",
		"postgresql+asyncpg://app:ssw0rd@host/db?prepared_statement_cache_size=0": "has " +
			"prepared_statement_cache_size, which is another driver's; " +
			"leave it out: PgBouncer is recognized by itself",
		"postgresql://app:ssw0rd@host/db?schema=ssw0rd": "has schema, which is another driver's; " +
			"write search_path",
		"postgresql://app:ssw0rd@host/db?pool_size=5&command_timeout=60": "has command_timeout, " +
			"which is another driver's; write statement_timeout, in milliseconds\n" +
			"DATABASE_URL: has pool_size, which is another driver's; set DATABASE_MAX_CONNS " +
			"instead",
	} {
		_, err := loadFrom(served("DATABASE_URL", url), "")
		if err == nil || err.Error() != "DATABASE_URL: "+want ||
			strings.Contains(err.Error(), "ssw0rd") {
			t.Errorf("DATABASE_URL=%s gives %v, want %s", url, err, want)
		}
	}
}

func TestEmbeddingsPort(t *testing.T) {
	t.Parallel()
	for url, good := range map[string]bool{"http://127.0.0.1:11434/v1": true,
		"http://[::1]:65535": true, "http://127.0.0.1:99999": false} {
		_, err := loadFrom(map[string]string{"EMBEDDINGS_URL": url, "EMBEDDINGS_MODEL": "x"}, "")
		if (err == nil) != good {
			t.Errorf("EMBEDDINGS_URL=%s gives %v", url, err)
		}
	}
}

// TestTypingErrors: a name in .env that is one or two edits from a setting is reported, no value.
func TestTypingErrors(t *testing.T) {
	t.Parallel()
	for name, nearest := range map[string]string{
		"REGISTRATION_OPN": "REGISTRATION_OPEN", "registration_open": "", "PORT": "",
		"DATABASE_URI": "DATABASE_URL", "SECRETKEY": "SECRET_KEY", "SECRET_KEY_FILE": "",
		"SECRET_KEY_FIL": "SECRET_KEY_FILE", "APP_NMAE": "APP_NAME", "cors_origin": "CORS_ORIGINS",
		"EMBEDDING_URL": "EMBEDDINGS_URL", "POSTGRES_PASSWORD": "", "HTTP_PROXY": "", "A": "",
		"JWT_SECRET_KEY": "SECRET_KEY", "app_database_url": "DATABASE_URL", "DB_PORT": "",
		"BACKEND_CORS_ORIGINS": "CORS_ORIGINS", "LOGLEVEL": "LOG_LEVEL", "LOG": "", "DEBUGGING": "",
	} {
		cfg, err := loadFrom(map[string]string{"SECRET_KEY": testKey, "PORT": "1"}, name+"=")
		var want []string
		if nearest != "" {
			want = append(want, ".env sets "+name+", which is no setting; the nearest is "+nearest)
		}
		if err != nil || !slices.Equal(cfg.warnings, want) {
			t.Errorf("%s in .env gives %v, %q, want %q", name, err, cfg.warnings, want)
		}
	}
}

func TestSecretKey(t *testing.T) {
	t.Parallel()
	const hex = "3f9c1b6a70d2e85447bb0a9df1c6e23885a4d07c19fe62b3"
	for key, want := range map[string]string{
		hex:                                     "",
		hex[:32]:                                "",
		"Ünïcode is as good as any, or so":      "",
		hex[:31]:                                "fewer than 32 bytes",
		"x":                                     "fewer than 32 bytes",
		strings.Repeat("a", 64):                 "repeats",
		strings.Repeat("ab", 32):                "repeats",
		strings.Repeat("0123456789abcdef", 4):   "repeats",
		strings.Repeat(hex, 2):                  "repeats",
		"your-secret-key-change-in-production":  "placeholder",
		"YOUR_SECRET_KEY_of_more_than_32_bytes": "placeholder",
		"please-changeme-please-changeme-0123":  "placeholder",
		"changethis-changethis-or-be-sorry-42":  "placeholder",
		publicKeys[0]:                           "placeholder",
		publicKeys[1]:                           "placeholder",
		"development-only-3f9c1b6a70d2e85447bb0a9df1c6e": "development only",
	} {
		if got := weakKey(key, false); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("weakKey(%q) = %q, want %q in it", key, got, want)
		}
		_, err := loadFrom(served("SECRET_KEY", oldTestKey+","+key), "")
		if want != "" && (err == nil || !strings.HasPrefix(err.Error(), "SECRET_KEY: key 2 ") ||
			len(key) > 1 && strings.Contains(err.Error(), key)) {
			t.Errorf("SECRET_KEY=…,%s gives %v", key, err)
		}
	}
	if why := weakKey("development-only-3f9c1b6a70d2e85447bb0a9df1c6e", true); why != "" {
		t.Errorf("a development key with DEBUG: %s", why)
	}
	_, err := loadFrom(map[string]string{"DATABASE_URL": "postgresql://u:p@db/x"}, "")
	if err == nil || !strings.HasPrefix(err.Error(), "SECRET_KEY: is required") {
		t.Errorf("DATABASE_URL without SECRET_KEY gives %v", err)
	}
}

// TestAllProblemsAtOnce puts a secret into each setting, as if all were in the wrong place.
func TestAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	tolerant := []string{"APP_NAME", "EMBEDDINGS_MODEL"} // any text will do
	env := map[string]string{}
	var want []string
	for name := range settings() {
		env[name] = "canary, \"canary\n"
		if !slices.Contains(tolerant, name) {
			want = append(want, name)
		}
	}
	_, err := loadFrom(env, "canary\nA=\"canary\nSECRET KEY=canary\nB=canary\nB=canary")
	if err == nil {
		t.Fatal("nothing is wrong with canaries everywhere")
	}
	lines := strings.Split(err.Error(), "\n")
	for _, name := range append(want, ".env") {
		isHere := func(line string) bool { return strings.HasPrefix(line, name+": ") }
		if !slices.ContainsFunc(lines, isHere) {
			t.Errorf("no line says what is wrong with %s:\n%v", name, err)
		}
	}
	line := regexp.MustCompile(`^([A-Z_0-9]+: |\.env: line \d+ )[a-z].{10,}$`)
	for _, l := range lines {
		if !line.MatchString(l) || strings.Contains(l, "canary") {
			t.Errorf("the problem reads %q", l)
		}
	}
	if got := strings.Count(err.Error(), ".env: line"); got != 4 {
		t.Errorf("%d problems of .env, want 4:\n%v", got, err)
	}
}

func TestSettingFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain, newline := file("plain", testKey), file("newline", testKey+"\r\n")
	other, mark := file("other", oldTestKey+"\n"), file("mark", "\ufeff"+testKey+"\r\n")
	env := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	const both = "SECRET_KEY: is given together with SECRET_KEY_FILE; unset one"
	const spelled = "SECRET_KEY: is given together with secret_key; unset one"
	const unread = "SECRET_KEY: the file that SECRET_KEY_FILE names cannot be read"
	for name, row := range map[string]struct {
		env    map[string]string
		dotenv string
		want   string // the key, or the problem
	}{
		"as it is":           {env("SECRET_KEY_FILE", plain), "", testKey},
		"line feed":          {env("SECRET_KEY_FILE", newline), "", testKey},
		"byte order mark":    {env("SECRET_KEY_FILE", mark), "", testKey},
		"lower case":         {env("secret_key_file", plain), "", testKey},
		"mixed case":         {env("Secret_Key", testKey), "", testKey},
		"lower case in .env": {nil, "secret_key=" + testKey, testKey},
		"two spellings":      {env("SECRET_KEY", testKey, "secret_key", oldTestKey), "", spelled},
		"two in .env":        {nil, "secret_key=canary\nSECRET_KEY=" + testKey, spelled},
		"two that agree":     {env("SECRET_KEY", testKey, "secret_key", testKey), "", testKey},
		"one empty":          {env("SECRET_KEY", "", "secret_key", testKey), "", testKey},
		"lower over .env":    {env("secret_key", testKey), "SECRET_KEY=" + oldTestKey, testKey},
		"newline":            {env("SECRET_KEY", testKey+"\n"), "", testKey},
		"newline in .env":    {nil, `SECRET_KEY="` + testKey + `\n"`, testKey},
		"in .env":            {nil, "SECRET_KEY_FILE=" + newline, testKey},
		"over .env":          {env("SECRET_KEY_FILE", plain), "SECRET_KEY=" + oldTestKey, testKey},
		"over .env's":        {env("SECRET_KEY_FILE", plain), "SECRET_KEY_FILE=" + other, testKey},
		"value over .env's":  {env("SECRET_KEY", testKey), "SECRET_KEY_FILE=" + other, testKey},
		"empty is none":      {env("SECRET_KEY", "", "SECRET_KEY_FILE", plain), "", testKey},
		"both":               {env("SECRET_KEY_FILE", plain, "SECRET_KEY", testKey), "", both},
		"both in .env":       {nil, "SECRET_KEY=" + testKey + "\nSECRET_KEY_FILE=" + plain, both},
		"missing":            {env("SECRET_KEY_FILE", dir+"/canary"), "", unread},
		"a directory":        {env("SECRET_KEY_FILE", dir), "", unread},
		"a secret as a name": {env("SECRET_KEY_FILE", testKey), "", unread},
	} {
		cfg, err := loadFrom(row.env, row.dotenv)
		got := strings.Join(cfg.SecretKeys, ",")
		if err != nil {
			got = err.Error()
		}
		if got != row.want {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
	for name, env := range map[string]map[string]string{
		both:   served("SECRET_KEY_FILE", plain),
		unread: served("SECRET_KEY", "", "SECRET_KEY_FILE", dir),
	} {
		if _, err := loadFrom(env, ""); err == nil || err.Error() != name {
			t.Errorf("with DATABASE_URL: %v, want %s", err, name)
		}
	}
	others := map[string]string{ // values that are no default, where the tags tell none
		"APP_NAME": "Other", "HOST": "::1", "API_V1_PREFIX": "/v2", "SECRET_KEY": oldTestKey,
		"DATABASE_URL": "postgresql://u:p@other/x", "CORS_ORIGINS": "https://b.example.com",
		"TRUSTED_PROXIES": "::1", "EMBEDDINGS_URL": "https://b.example.com",
		"EMBEDDINGS_MODEL": "large", "EMBEDDINGS_API_KEY": "key", "TEXT_SEARCH_CONFIG": "english",
		"METRICS_ADDR": "9090", "EMBEDDINGS_HEADER": "api-key", "TOKEN_ISSUER": "other",
	}
	base := func() map[string]string {
		return served("EMBEDDINGS_URL", "http://a.example.com", "EMBEDDINGS_MODEL", "small")
	}
	plainly, _ := loadFrom(base(), "")
	for name, tags := range settings() {
		rule := strings.FieldsFunc(tags.rule, func(c rune) bool { return c == ' ' || c == ',' })
		value := cmp.Or(others[name], append([]string{""}, rule...)[len(rule)],
			map[string]string{"true": "false", "false": "true"}[tags.def])
		env := base()
		env[name] = value
		want, err := loadFrom(env, "")
		if err != nil || name != "ALGORITHM" && reflect.DeepEqual(want, plainly) {
			t.Errorf("%s=%s changes nothing: %v", name, value, err)
		}
		delete(env, name)
		env[name+"_FILE"] = file(name, value+"\n")
		if got, err := loadFrom(env, ""); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s_FILE with %s gives %+v, %v, want %+v", name, value, got, err, want)
		}
		env[name+"_FILE"] = dir // no file
		unread := fmt.Sprintf("%s: the file that %[1]s_FILE names cannot be read", name)
		if _, err := loadFrom(env, ""); err == nil || err.Error() != unread {
			t.Errorf("%s_FILE with a directory gives %v, want %s", name, err, unread)
		}
	}
}

// TestSettingsNamed holds the files that give settings against the settings that there are.
func TestSettingsNamed(t *testing.T) {
	t.Parallel()
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	all := settings()
	image := served()
	variable := regexp.MustCompile(`(?m)^ENV (.*)=(.*)$`)
	for _, m := range variable.FindAllStringSubmatch(read("Dockerfile"), -1) {
		if image[m[1]] = m[2]; all[m[1]].name == "" {
			t.Errorf("the Dockerfile sets %s, which is no setting", m[1])
		}
	}
	if cfg, err := loadFrom(image, ""); err != nil || cfg.Host != "0.0.0.0" {
		t.Errorf("the image listens on %q, %v, want 0.0.0.0", cfg.Host, err)
	}
	example := read(".env.example")
	if _, err := loadFrom(nil, example); err != nil {
		t.Errorf(".env.example as it stands: %v", err)
	}
	full := regexp.MustCompile(`(?m)^# ([A-Z0-9_]+=)`).ReplaceAllString(example, "$1")
	if cfg, err := loadFrom(served(), full); err != nil || cfg.warnings != nil {
		t.Errorf(".env.example with all its lines: %v, %v", err, cfg.warnings)
	}
	for name, tags := range all {
		passed := fmt.Sprintf("\n      %s: ${%[1]s-${%s-}}\n", name, strings.ToLower(name))
		own := []string{"DATABASE_URL", "HOST", "PORT", "DEBUG"} // of compose.yaml
		if slices.Contains(own, name) {
			passed = fmt.Sprintf("\n      %s: \"\"", strings.ToLower(name))
		}
		if !strings.Contains(read("compose.yaml"), passed) && name != "SECRET_KEY" {
			t.Errorf("compose.yaml does not pass %s to the container", name)
		}
		m := regexp.MustCompile(`(?m)^(?:# )?` + name + `=(.*)$`).FindStringSubmatch(example)
		if m == nil || tags.def != "" && m[1] != tags.def {
			t.Errorf(".env.example has %q for %s, want the default %q", m, name, tags.def)
		}
	}
	compose := []string{"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "POSTGRES_PORT",
		"REPLICATION_PASSWORD", "LATCH_IMAGE", "NAME_FILE", "COMPOSE_PROJECT_NAME", "LC_CTYPE"}
	word := regexp.MustCompile(`\b[A-Z][A-Z0-9]*(_[A-Z0-9]+)+\b`)
	check := func(file, text string) {
		for _, name := range word.FindAllString(text, -1) {
			if all[name].name == "" && !slices.Contains(compose, name) {
				t.Errorf("%s names %s, which is no setting", file, name)
			}
		}
	}
	for _, file := range []string{".env.example", "deploy/OPERATIONS.md", "docs/SECURITY.md",
		"docs/your-product.md", "BENCHMARKS.md", "deploy/README.md"} {
		check(file, read(file))
	}
	check("README.md", readme(t))
}

// TestPrintSettings finds each setting in a line of its own, with all meanings in one column.
func TestPrintSettings(t *testing.T) {
	t.Parallel()
	var table strings.Builder
	printSettings(&table)
	lines, column := strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n"), 0
	for i, row := range (&config{}).settings() {
		name, meaning := row.name, row.doc
		at := strings.LastIndex(lines[i], "  "+meaning)
		column = cmp.Or(column, at)
		if at < 0 || at != column || !strings.HasPrefix(lines[i], "  "+name+"  ") {
			t.Errorf("%s is printed as %q", name, lines[i])
		}
	}
	if got := len(lines); got != len(settings()) {
		t.Errorf("%d lines, want %d", got, len(settings()))
	}
}

func TestDotEnv(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{ // the value of A; "!" for a problem
		"A=b":                             "b",
		"export A=b":                      "b",
		"export\tA=b":                     "b",
		"  A = b c  \r\n":                 "b c",
		"# A=c\n\nA=b # d":                "b",
		"A=b#c":                           "b#c",
		"A=b\t# c":                        "b",
		"A=# c":                           "",
		"A=":                              "",
		"A='b # \\n \"c\"' # d":           `b # \n "c"`,
		`A="b # 'c'"  # d`:                `b # 'c'`,
		`A="\\n\n\"\$B ${B} $B \t"`:       "\\n\n\"$B ${B} $B \\t",
		"B=1\nA=x${B}y${C}${D:-z}":        "x1y${C}z",
		"B=1\nA=\"${B:-2} \\${B} ${UP}\"": "1 ${B} up",
		"B=1\nA='${B}'":                   "${B}",
		"UP=down\nA=${UP}":                "up",
		"A=${B}\nB=1":                     "${B}",
		"A=${B:-}c":                       "c",
		"A=a=b":                           "a=b",
		"A=$B":                            "$B",
		"B=1\r\nA=b\r\nC=2\r\n":           "b",
		"a=x\nA=b":                        "b",
		"A=b\nA=b":                        "!",
		"A":                               "!",
		"=b":                              "!",
		"1A=b":                            "!",
		"A B=c":                           "!",
		"A-B=c":                           "!",
		`A="b`:                            "!",
		`A='b`:                            "!",
		"A=\t\"b\"c":                      "!",
		"A= \"b\" # c":                    "b",
		`A="b" c`:                         "!",
		`A='b'c'`:                         "!",
		`A="b\"`:                          "!",
		"A=b\x00":                         "!",
		"\ufeffA=b":                       "b",
		"A=b\n\ufeffB=1":                  "!",
		"http_proxy=x\nHTTP_PROXY=y\nA=b": "b",
	} {
		values, problems := parseDotEnv(text, map[string]string{"UP": "up"})
		if want == "!" {
			if len(problems) != 1 {
				t.Errorf("parseDotEnv(%q) gives %v, want one problem", text, problems)
			}
		} else if got, ok := values["A"]; got != want || !ok || problems != nil {
			t.Errorf("parseDotEnv(%q) gives %q, %v, want %q", text, got, problems, want)
		}
	}
	cfg, err := loadFrom(map[string]string{"PORT": "81"},
		"PORT=82\nAPP_NAME='Other' # ours\nOTHER_PROGRAMS=1\n")
	if err != nil || cfg.Port != 81 || cfg.AppName != "Other" {
		t.Errorf("the environment over .env gives %+v, %v", cfg, err)
	}
}

// dotEnvQuotes are ways to write value in .env.
func dotEnvQuotes(value string) (ways []string) {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "$", `\$`)
	ways = []string{`"` + escape.Replace(value) + `"`}
	if !strings.ContainsAny(value, "'\n") {
		ways = append(ways, "'"+value+"'")
	}
	if matches(value, `^[\w./:@%+,-][\w./:@%+,#= -]*$`) && !strings.Contains(value, " #") &&
		!strings.HasSuffix(value, " ") {
		ways = append(ways, value)
	}
	return ways
}

// FuzzDotEnv reads anything, and writes anything and reads it back.
func FuzzDotEnv(f *testing.F) {
	for _, text := range []string{"A=b", "export A='b # c'\r\nB=\"\\\\ \\\" \\n \\$\" # d\n",
		"\ufeffA=b", "A=\x00", `A="`, "A='", "#", "=", "A=\xff\u2028", "a\\", "line\nline",
		"postgresql://u:p@db/x?a=b#c", `\n`, `"'`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, problems := parseDotEnv(text, nil)
		if lines := strings.Count(text, "\n") + 1; len(values)+len(problems) > 2*lines {
			t.Errorf("parseDotEnv(%q) gives %v, %v", text, values, problems)
		}
		for _, p := range problems {
			if !matches(p.Error(), `^\.env: line \d+ [a-zN]`) || len(p.Error()) > 80 {
				t.Errorf("parseDotEnv(%q): %v", text, p)
			}
		}
		if strings.ContainsRune(text, 0) {
			return
		}
		for _, quoted := range dotEnvQuotes(text) {
			values, problems := parseDotEnv("# x\r\n\tB=1\nexport A="+quoted+" # y\nC=2", nil)
			if problems != nil || values["A"] != text || values["B"] != "1" ||
				values["C"] != "2" || len(values) != 3 {
				t.Errorf("A=%s is read as %q, %v, want %q", quoted, values, problems, text)
			}
		}
	})
}

// TestUsage runs the program itself with wrong and right arguments and settings.
func TestUsage(t *testing.T) {
	t.Parallel()
	t.Run("help", func(t *testing.T) {
		for _, flag := range []string{"-h", "--help"} {
			badSettings := []string{"PORT=canary"}
			exit, stdout, stderr := runLatch(t, t.TempDir(), badSettings, "", flag)
			if exit != 0 || stderr != "" {
				t.Errorf("latch %s exits with %d: %s", flag, exit, stderr)
			}
			for name, tags := range settings() {
				line := `(?m)^  ` + name + ` +` + regexp.QuoteMeta(tags.def) + ` *` +
					regexp.QuoteMeta(tags.doc) + `$`
				if !matches(stdout, line) || name == "" || tags.doc == "" {
					t.Errorf("latch %s does not explain %s", flag, name)
				}
			}
			for _, command := range []string{"migrate", "-check", "admin EMAIL", "healthcheck",
				"-h", "-version"} {
				if !strings.Contains(stdout, command) {
					t.Errorf("latch %s does not tell of %s", flag, command)
				}
			}
		}
	})
	unknown := `^latch: unknown command or flag; see latch -h\n$`
	warned := `^latch: warning: \.env sets REGISTRATION_OPN, which is no setting; ` +
		`the nearest is REGISTRATION_OPEN\nPORT: [^\n]+\n$`
	databaseURL := func(url string) []string {
		return []string{"DATABASE_URL=" + url, "SECRET_KEY=" + testKey}
	}
	badPort := []string{"PORT=canary"}
	const noEmail = `^latch: EMAIL must be an e-mail address such as name@example\.com\n$`
	long := strings.Repeat("canary.", 40) + "x@example.com"
	for name, row := range map[string]struct {
		args   string
		env    []string
		dotenv string
		exit   int
		stderr string
	}{
		"version":         {args: "-version"},
		"unknown flag":    {args: "-canary", exit: 2, stderr: unknown},
		"unknown command": {args: "canary", exit: 2, stderr: unknown},
		"admin of nobody": {args: "admin", exit: 2, stderr: unknown},
		"admin of two":    {args: "admin canary canary", exit: 2, stderr: unknown},
		"admin of a name": {args: "admin canary", exit: 2, stderr: noEmail},
		"admin of -x@":    {args: "admin -x@", exit: 2, stderr: noEmail},
		"admin --help":    {args: "admin --help", exit: 2, stderr: noEmail},
		"index of a name": {args: "index canary@@", exit: 2, stderr: noEmail},
		"-drop of a name": {args: "index -drop canary", exit: 2, stderr: noEmail},
		"admin of too long": {args: "admin " + long, exit: 2,
			stderr: `^latch: EMAIL must have at most 254 characters, and 64 before the @\n$`},
		"migrate too much": {args: "migrate -check canary", exit: 2, stderr: unknown},
		"two problems": {env: []string{"PORT=canary", "DEBUG=canary"}, exit: 2,
			stderr: `^DEBUG: [^\n]+\nPORT: [^\n]+\n$`},
		"bad .env": {dotenv: "PORT=canary\ncanary", exit: 2,
			stderr: `^\.env: line 2 [^\n]+\nPORT: [^\n]+\n$`},
		"typing error in .env": {dotenv: "REGISTRATION_OPN=canary", env: badPort, exit: 2,
			stderr: warned},
		"no key": {env: []string{"DATABASE_URL=postgresql://canary@/x"}, exit: 2,
			stderr: `^SECRET_KEY: is required [^\n]+\n$`},
		"lower case": {env: []string{"database_url=postgresql://canary@/x"}, exit: 2,
			stderr: `^SECRET_KEY: is required with DATABASE_URL[^\n]+\n$`},
		"bad URL": {env: databaseURL("postgresql://u:canary@h:canary/x"), exit: 2,
			stderr: `^DATABASE_URL: [^\n]+\n$`},
		"@ in the password": {env: databaseURL("postgres://app:P@canary!@host/db"), exit: 2,
			stderr: `^DATABASE_URL: must be [^\n]+ \(@ is %40\)[^\n]+\n$`},
		"bad for admin": {args: "admin a@example.com", env: badPort, exit: 2,
			stderr: `^PORT: [^\n]+\n$`},
		"bad for health": {args: "healthcheck", env: badPort, exit: 2,
			stderr: `^PORT: [^\n]+\n$`},
	} {
		dir := t.TempDir()
		if row.dotenv != "" {
			err := os.WriteFile(filepath.Join(dir, ".env"), []byte(row.dotenv), 0o600)
			if err != nil {
				t.Fatal(err)
			}
		}
		exit, stdout, stderr := runLatch(t, dir, row.env, "", strings.Fields(row.args)...)
		if exit != row.exit || !matches(stderr, row.stderr) ||
			strings.Contains(stdout+stderr, "canary") {
			t.Errorf("%s: latch %s exits with %d, want %d: %s%s", name, row.args, exit, row.exit,
				stdout, stderr)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 1 || row.dotenv == "" && len(entries) > 0 {
			t.Errorf("%s: latch %s left %v", name, row.args, entries)
		}
	}
	exit, stdout, _ := runLatch(t, t.TempDir(), nil, "", "-version")
	if want := fmt.Sprintf("latch %s (commit unknown)\n", version); exit != 0 || stdout != want {
		t.Errorf("latch -version exits with %d and prints %q, want %q", exit, stdout, want)
	}
}

func TestCommit(t *testing.T) {
	t.Parallel()
	info := &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "GOOS", Value: "linux"},
		{Key: "vcs.revision", Value: "0e647f60a3d7"}, {Key: "vcs.modified", Value: "true"}}}
	if got := commit(info, true); got != "0e647f60a3d7" {
		t.Errorf("commit = %q, want the revision", got)
	}
	if got := commit(&debug.BuildInfo{}, true) + commit(nil, false); got != "unknownunknown" {
		t.Errorf("commit without a revision, and without any information = %q", got)
	}
}
