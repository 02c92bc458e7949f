package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
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
	return loadConfig(func(name string) string { return env[name] }, dotenv)
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
	want := config{AppName: "Latch", Docs: true, EmbeddingDimensions: 384, TextSearch: "simple", Host: "127.0.0.1", APIPrefix: "/api/v1", DatabaseMaxConns: 8, Algorithm: "HS256", AccessMinutes: 30, RefreshDays: 7, RefreshGrace: 10,
		RegistrationOpen: true, LogLevel: "info", LogFormat: "text"}
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("loadConfig of nothing = %+v, %v, want %+v", got, err, want)
	}
	if got, err := loadFrom(served("DEBUG", "true"), ""); err != nil || got.LogFormat != "json" || got.LogLevel != "debug" {
		t.Errorf("with DATABASE_URL and DEBUG: %+v, %v, want json and debug", got, err)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	get := func(c *config, name string) any {
		for _, row := range c.settings() {
			if row.name == name {
				return reflect.ValueOf(row.to).Elem().Interface()
			}
		}
		return nil
	}
	net := netip.MustParsePrefix
	for _, row := range []struct {
		name, text string
		want       any // nil: refused
	}{
		{"APP_NAME", "Acme", "Acme"},
		{"DEBUG", "TRUE", true},
		{"DEBUG", "0", false},
		{"DEBUG", "yes", nil},
		{"DATABASE_ECHO", "True", true},
		{"REGISTRATION_OPEN", "false", false},
		{"PORT", "65535", int64(65535)},
		{"PORT", "0", nil},
		{"PORT", "65536", nil},
		{"PORT", "80a", nil},
		{"PORT", "8000.0", nil},
		{"PORT", "99999999999999999999", nil},
		{"DATABASE_MAX_CONNS", "0", nil},
		{"ACCESS_TOKEN_EXPIRE_MINUTES", "0", nil},
		{"ACCESS_TOKEN_EXPIRE_MINUTES", "15", int64(15)},
		{"REFRESH_TOKEN_EXPIRE_DAYS", "30", int64(30)},
		{"REFRESH_TOKEN_EXPIRE_DAYS", "31", nil},
		{"REFRESH_GRACE_SECONDS", "0", int64(0)},
		{"REFRESH_GRACE_SECONDS", "-1", nil},
		{"SHUTDOWN_DELAY", "300", int64(300)},
		{"ALGORITHM", "HS256", "HS256"},
		{"ALGORITHM", "HS512", nil},
		{"ALGORITHM", "RS256", nil},
		{"ALGORITHM", "none", nil},
		{"ALGORITHM", "hs256", nil},
		{"LOG_LEVEL", "warn", "warn"},
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
		{"DATABASE_URL", "postgresql://u:p@db:5432/x?sslmode=require", "postgresql://u:p@db:5432/x?sslmode=require"},
		{"DATABASE_URL", "postgres://u:p@db/x", "postgres://u:p@db/x"},
		{"DATABASE_URL", "postgresql+asyncpg://u:p@db/x", "postgresql://u:p@db/x"},
		{"DATABASE_URL", "postgresql://u:p@a:5432,b:5432/x?target_session_attrs=read-write", "postgresql://u:p@a:5432,b:5432/x?target_session_attrs=read-write"},
		{"DATABASE_URL", "mysql://u:p@db/x", nil},
		{"DATABASE_URL", "sqlite:///x.db", nil},
		{"DATABASE_URL", "host=db user=u", nil},
		{"DATABASE_URL", "postgresql://u:p@db:port/x", nil},
		{"DATABASE_URL", "postgresql://u:p%@db/x", nil},
		{"DATABASE_URL", "postgresql://u:p@db/x?sslmode=maybe", nil},
		{"CORS_ORIGINS", "https://a.example.com", []string{"https://a.example.com"}},
		{"CORS_ORIGINS", "https://a.example.com, http://localhost:5173", []string{"https://a.example.com", "http://localhost:5173"}},
		{"CORS_ORIGINS", "*", nil},
		{"CORS_ORIGINS", "https://*.example.com", nil},
		{"CORS_ORIGINS", "null", nil},
		{"CORS_ORIGINS", "a.example.com", nil},
		{"CORS_ORIGINS", "https://a.example.com/", nil},
		{"CORS_ORIGINS", "https://a.example.com/x", nil},
		{"CORS_ORIGINS", "https://u@a.example.com", nil},
		{"CORS_ORIGINS", "https://a.example.com,", nil},
		{"CORS_ORIGINS", "https://A.example.com", nil},
		{"TRUSTED_PROXIES", "10.0.0.0/8", []netip.Prefix{net("10.0.0.0/8")}},
		{"TRUSTED_PROXIES", "10.1.2.3/8, ::1, 192.0.2.1", []netip.Prefix{net("10.0.0.0/8"), net("::1/128"), net("192.0.2.1/32")}},
		{"TRUSTED_PROXIES", "10.0.0.0/33", nil},
		{"TRUSTED_PROXIES", "proxy", nil},
		{"TRUSTED_PROXIES", "10.0.0.0/8,", nil},
		{"SECRET_KEY", testKey + ", " + oldTestKey, []string{testKey, oldTestKey}},
		{"SECRET_KEY", testKey + "," + testKey, nil},
		{"SECRET_KEY", testKey + ",", nil},
	} {
		cfg, err := loadFrom(served(row.name, row.text), "")
		if row.want == nil {
			if err == nil || !strings.HasPrefix(err.Error(), row.name+": ") || strings.Count(err.Error(), "\n") > 0 {
				t.Errorf("%s=%s gives %v, want one problem", row.name, row.text, err)
			}
		} else if got := get(cfg, row.name); err != nil || !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s=%s is %v, %v, want %v", row.name, row.text, got, err, row.want)
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
		if want != "" && (err == nil || !strings.HasPrefix(err.Error(), "SECRET_KEY: key 2 ") || len(key) > 1 && strings.Contains(err.Error(), key)) {
			t.Errorf("SECRET_KEY=…,%s gives %v", key, err)
		}
	}
	if why := weakKey("development-only-3f9c1b6a70d2e85447bb0a9df1c6e", true); why != "" {
		t.Errorf("a development key with DEBUG: %s", why)
	}
	if _, err := loadFrom(map[string]string{"DATABASE_URL": "postgresql://u:p@db/x"}, ""); err == nil || !strings.HasPrefix(err.Error(), "SECRET_KEY: is required") {
		t.Errorf("DATABASE_URL without SECRET_KEY gives %v", err)
	}
}

// TestAllProblemsAtOnce puts a secret into each setting, as if all were in the wrong place.
func TestAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	tolerant := []string{"APP_NAME", "HOST", "EMBEDDINGS_MODEL"} // any text will do
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
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, name+": ") }) {
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
	plain, newline, other := file("plain", testKey), file("newline", testKey+"\r\n"), file("other", oldTestKey+"\n")
	for name, row := range map[string]struct {
		env    map[string]string
		dotenv string
		want   string // the key, or the problem
	}{
		"as it is":           {map[string]string{"SECRET_KEY_FILE": plain}, "", testKey},
		"line feed":          {map[string]string{"SECRET_KEY_FILE": newline}, "", testKey},
		"in .env":            {nil, "SECRET_KEY_FILE=" + newline, testKey},
		"over .env":          {map[string]string{"SECRET_KEY_FILE": plain}, "SECRET_KEY=" + oldTestKey, testKey},
		"over .env's":        {map[string]string{"SECRET_KEY_FILE": plain}, "SECRET_KEY_FILE=" + other, testKey},
		"value over .env's":  {map[string]string{"SECRET_KEY": testKey}, "SECRET_KEY_FILE=" + other, testKey},
		"empty is none":      {map[string]string{"SECRET_KEY": "", "SECRET_KEY_FILE": plain}, "", testKey},
		"both":               {map[string]string{"SECRET_KEY_FILE": plain, "SECRET_KEY": testKey}, "", "SECRET_KEY: is given together with SECRET_KEY_FILE; unset one"},
		"both in .env":       {nil, "SECRET_KEY=" + testKey + "\nSECRET_KEY_FILE=" + plain, "SECRET_KEY: is given together with SECRET_KEY_FILE; unset one"},
		"missing":            {map[string]string{"SECRET_KEY_FILE": dir + "/canary"}, "", "SECRET_KEY: the file that SECRET_KEY_FILE names cannot be read"},
		"a directory":        {map[string]string{"SECRET_KEY_FILE": dir}, "", "SECRET_KEY: the file that SECRET_KEY_FILE names cannot be read"},
		"a secret as a name": {map[string]string{"SECRET_KEY_FILE": testKey}, "", "SECRET_KEY: the file that SECRET_KEY_FILE names cannot be read"},
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
	others := map[string]string{ // values that are no default, where the tags tell none
		"APP_NAME": "Acme", "HOST": "::1", "API_V1_PREFIX": "/v2", "DATABASE_URL": "postgresql://u:p@other/x", "SECRET_KEY": oldTestKey, "CORS_ORIGINS": "https://b.example.com", "TRUSTED_PROXIES": "::1",
		"EMBEDDINGS_URL": "https://b.example.com", "EMBEDDINGS_MODEL": "large", "EMBEDDINGS_API_KEY": "key", "TEXT_SEARCH_CONFIG": "english", "METRICS_ADDR": "9090",
	}
	base := func() map[string]string {
		return served("EMBEDDINGS_URL", "http://a.example.com", "EMBEDDINGS_MODEL", "small")
	}
	plainly, _ := loadFrom(base(), "")
	for name, tags := range settings() {
		rule := strings.FieldsFunc(tags.rule, func(c rune) bool { return c == ' ' || c == ',' })
		value := cmp.Or(others[name], append([]string{""}, rule...)[len(rule)], map[string]string{"true": "false", "false": "true"}[tags.def])
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
	for _, m := range regexp.MustCompile(`(?m)^ENV (.*)=(.*)$`).FindAllStringSubmatch(read("Dockerfile"), -1) {
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
	if _, err := loadFrom(served(), regexp.MustCompile(`(?m)^# ([A-Z0-9_]+=)`).ReplaceAllString(example, "$1")); err != nil {
		t.Errorf(".env.example with all its lines: %v", err)
	}
	for name, tags := range all {
		m := regexp.MustCompile(`(?m)^(?:# )?` + name + `=(.*)$`).FindStringSubmatch(example)
		if m == nil || tags.def != "" && m[1] != tags.def {
			t.Errorf(".env.example has %q for %s, want the default %q", m, name, tags.def)
		}
	}
	compose := []string{"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "POSTGRES_PORT", "REPLICATION_PASSWORD", "LATCH_IMAGE", "NAME_FILE"}
	for _, file := range []string{".env.example", "README.md", "deploy/OPERATIONS.md", "SECURITY.md", "BENCHMARKS.md", "deploy/README.md"} {
		for _, name := range regexp.MustCompile(`\b[A-Z][A-Z0-9]*(_[A-Z0-9]+)+\b`).FindAllString(read(file), -1) {
			if all[name].name == "" && !slices.Contains(compose, name) {
				t.Errorf("%s names %s, which is no setting", file, name)
			}
		}
	}
}

// TestPrintSettings sees each setting in a line of its own, its meaning in the same column as the others'.
func TestPrintSettings(t *testing.T) {
	t.Parallel()
	var table strings.Builder
	printSettings(&table)
	lines, column := strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n"), 0
	for i, row := range (&config{}).settings() {
		name, meaning := row.name, row.doc
		at := strings.LastIndex(lines[i], "  "+meaning)
		if column = cmp.Or(column, at); at < 0 || at != column || !strings.HasPrefix(lines[i], "  "+name+"  ") {
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
		"A=b":                       "b",
		"export A=b":                "b",
		"export\tA=b":               "b",
		"  A = b c  \r\n":           "b c",
		"# A=c\n\nA=b # d":          "b",
		"A=b#c":                     "b#c",
		"A=b\t# c":                  "b",
		"A=# c":                     "",
		"A=":                        "",
		"A='b # \\n \"c\"' # d":     `b # \n "c"`,
		`A="b # 'c'"  # d`:          `b # 'c'`,
		`A="\\n\n\"\$B ${B} $B \t"`: "\\n\n\"$B ${B} $B \\t",
		"A=a=b":                     "a=b",
		"A=$B":                      "$B",
		"B=1\r\nA=b\r\nC=2\r\n":     "b",
		"a=x\nA=b":                  "b",
		"A=b\nA=b":                  "!",
		"A":                         "!",
		"=b":                        "!",
		"1A=b":                      "!",
		"A B=c":                     "!",
		"A-B=c":                     "!",
		`A="b`:                      "!",
		`A='b`:                      "!",
		`A="b" c`:                   "!",
		`A='b'c'`:                   "!",
		`A="b\"`:                    "!",
		"A=b\x00":                   "!",
		"\ufeffB=1":                 "!",
	} {
		values, problems := parseDotEnv(text)
		if want == "!" {
			if len(problems) != 1 {
				t.Errorf("parseDotEnv(%q) gives %v, want one problem", text, problems)
			}
		} else if got, ok := values["A"]; got != want || !ok || problems != nil {
			t.Errorf("parseDotEnv(%q) gives %q, %v, want %q", text, got, problems, want)
		}
	}
	cfg, err := loadFrom(map[string]string{"PORT": "81"}, "PORT=82\nAPP_NAME='Acme' # ours\nOTHER_PROGRAMS=1\n")
	if err != nil || cfg.Port != 81 || cfg.AppName != "Acme" {
		t.Errorf("the environment over .env gives %+v, %v", cfg, err)
	}
}

// dotEnvQuotes are ways to write value in .env.
func dotEnvQuotes(value string) (ways []string) {
	ways = []string{`"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "$", `\$`).Replace(value) + `"`}
	if !strings.ContainsAny(value, "'\n") {
		ways = append(ways, "'"+value+"'")
	}
	if regexp.MustCompile(`^[\w./:@%+,-][\w./:@%+,#= -]*$`).MatchString(value) && !strings.Contains(value, " #") && !strings.HasSuffix(value, " ") {
		ways = append(ways, value)
	}
	return ways
}

// FuzzDotEnv reads anything, and writes anything and reads it back.
func FuzzDotEnv(f *testing.F) {
	for _, text := range []string{"A=b", "export A='b # c'\r\nB=\"\\\\ \\\" \\n \\$\" # d\n", "\ufeffA=b", "A=\x00", `A="`, "A='", "#", "=", "A=\xff\u2028", "a\\", "line\nline", "postgresql://u:p@db/x?a=b#c", `\n`, `"'`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, problems := parseDotEnv(text)
		if lines := strings.Count(text, "\n") + 1; len(values)+len(problems) > 2*lines {
			t.Errorf("parseDotEnv(%q) gives %v, %v", text, values, problems)
		}
		for _, p := range problems {
			if !regexp.MustCompile(`^\.env: line \d+ [a-zN]`).MatchString(p.Error()) || len(p.Error()) > 80 {
				t.Errorf("parseDotEnv(%q): %v", text, p)
			}
		}
		if strings.ContainsRune(text, 0) {
			return
		}
		for _, quoted := range dotEnvQuotes(text) {
			values, problems := parseDotEnv("# x\r\n\tB=1\nexport A=" + quoted + " # y\nC=2")
			if problems != nil || values["A"] != text || values["B"] != "1" || values["C"] != "2" || len(values) != 3 {
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
			exit, stdout, stderr := runLatch(t, t.TempDir(), []string{"PORT=canary"}, "", flag) // also with bad settings
			if exit != 0 || stderr != "" {
				t.Errorf("latch %s exits with %d: %s", flag, exit, stderr)
			}
			for name, tags := range settings() {
				line := regexp.MustCompile(`(?m)^  ` + name + ` +` + regexp.QuoteMeta(tags.def) + ` *` + regexp.QuoteMeta(tags.doc) + `$`)
				if !line.MatchString(stdout) || name == "" || tags.doc == "" {
					t.Errorf("latch %s does not explain %s", flag, name)
				}
			}
			for _, command := range []string{"migrate", "-check", "admin EMAIL", "healthcheck", "-h", "-version"} {
				if !strings.Contains(stdout, command) {
					t.Errorf("latch %s does not tell of %s", flag, command)
				}
			}
		}
	})
	for name, row := range map[string]struct {
		args   string
		env    []string
		dotenv string
		exit   int
		stderr string
	}{
		"version":          {args: "-version"},
		"unknown flag":     {args: "-canary", exit: 2, stderr: `^latch: unknown command or flag; see latch -h\n$`},
		"unknown command":  {args: "canary", exit: 2, stderr: `^latch: unknown command or flag; see latch -h\n$`},
		"admin of nobody":  {args: "admin", exit: 2, stderr: `^latch: unknown`},
		"admin of two":     {args: "admin canary canary", exit: 2, stderr: `^latch: unknown`},
		"migrate too much": {args: "migrate -check canary", exit: 2, stderr: `^latch: unknown`},
		"two problems":     {env: []string{"PORT=canary", "DEBUG=canary"}, exit: 2, stderr: `^DEBUG: [^\n]+\nPORT: [^\n]+\n$`},
		"bad .env":         {dotenv: "PORT=canary\ncanary", exit: 2, stderr: `^\.env: line 2 [^\n]+\nPORT: [^\n]+\n$`},
		"no key":           {env: []string{"DATABASE_URL=postgresql://canary@/x"}, exit: 2, stderr: `^SECRET_KEY: is required [^\n]+\n$`},
		"bad URL":          {env: []string{"DATABASE_URL=postgresql://u:canary@h:canary/x", "SECRET_KEY=" + testKey}, exit: 2, stderr: `^DATABASE_URL: [^\n]+\n$`},
		"bad for admin":    {args: "admin a@example.com", env: []string{"PORT=canary"}, exit: 2, stderr: `^PORT: [^\n]+\n$`},
		"bad for health":   {args: "healthcheck", env: []string{"PORT=canary"}, exit: 2, stderr: `^PORT: [^\n]+\n$`},
	} {
		dir := t.TempDir()
		if row.dotenv != "" {
			if err := os.WriteFile(filepath.Join(dir, ".env"), []byte(row.dotenv), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		exit, stdout, stderr := runLatch(t, dir, row.env, "", strings.Fields(row.args)...)
		if exit != row.exit || !regexp.MustCompile(row.stderr).MatchString(stderr) || strings.Contains(stdout+stderr, "canary") {
			t.Errorf("%s: latch %s exits with %d, want %d: %s%s", name, row.args, exit, row.exit, stdout, stderr)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 1 || row.dotenv == "" && len(entries) > 0 {
			t.Errorf("%s: latch %s left %v", name, row.args, entries)
		}
	}
	if exit, stdout, _ := runLatch(t, t.TempDir(), nil, "", "-version"); exit != 0 || stdout != fmt.Sprintf("latch %s\n", version) {
		t.Errorf("latch -version exits with %d: %s", exit, stdout)
	}
}
