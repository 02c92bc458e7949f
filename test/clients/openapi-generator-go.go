//go:build ignore

// openapi-generator-go.go drives the go client of openapi-generator. run.sh copies it to the module
// of the clients.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"net/http"
	"os"

	openapi "clients/openapi"
)

var email = os.Getenv("DRIVER") + "@example.com"

const (
	password = "correct horse battery"
	content  = "Ada wrote the first program."
	filter   = `{"lang":"en"}`
)

func check(what string, ok bool, got any) {
	if !ok {
		log.Fatalf("FAILS: %s %+v", what, got)
	}
	fmt.Println("works:", what)
}

// want returns the value of a successful call.
func want[T any](what string) func(v T, r *http.Response, err error) T {
	return func(v T, _ *http.Response, err error) T {
		check(what, err == nil, err)
		return v
	}
}

func main() {
	ctx, config := context.Background(), openapi.NewConfiguration()
	config.Servers[0].URL = os.Getenv("BASE")
	api := openapi.NewAPIClient(config)
	account := openapi.NewRegisterRequest(email, password)
	user := want[*openapi.User]("register")(
		api.AuthAPI.Register(ctx).RegisterRequest(*account).Execute())
	login := openapi.NewLoginRequest()
	login.SetUsername(email)
	login.SetPassword(password)
	tokens := want[*openapi.Tokens]("login by JSON")(
		api.AuthAPI.Login(ctx).LoginRequest(*login).Execute())
	refresh := openapi.NewRefreshRequest(tokens.RefreshToken)
	tokens = want[*openapi.Tokens]("refresh")(
		api.AuthAPI.Refresh(ctx).RefreshRequest(*refresh).Execute())
	ctx = context.WithValue(ctx, openapi.ContextAccessToken, tokens.AccessToken)
	me := want[*openapi.User]("me")(api.UsersAPI.Me(ctx).Execute())
	check("full_name", me.Id == user.Id && !me.FullName.IsSet() || me.FullName.Get() == nil, me)
	documents(ctx, api)
	account.Password = "password"
	_, _, err := api.AuthAPI.Register(ctx).RegisterRequest(*account).Execute()
	failed, ok := errors.AsType[*openapi.GenericOpenAPIError](err)
	check("422", ok, err)
	problem, ok := failed.Model().(openapi.Problem)
	check("problem", ok && problem.Errors[0].Loc[1] == "password", failed.Model())
}

func documents(ctx context.Context, api *openapi.APIClient) {
	embedding := make([]float32, 384) // the default of EMBEDDING_DIMENSIONS
	for i := range embedding {
		embedding[i] = float32(math.Sin(float64(i + 1)))
	}
	body := openapi.NewCreateDocumentRequest(content)
	body.Embedding, body.Metadata = embedding, map[string]any{"lang": "en"}
	document := want[*openapi.Document]("create")(
		api.DocumentsAPI.CreateDocument(ctx).CreateDocumentRequest(*body).Execute())
	list := want[[]openapi.Document]("list with filter")(
		api.DocumentsAPI.ListDocuments(ctx).Filter(filter).Limit(5).Execute())
	check("listed", len(list) == 1 && list[0].Id == document.Id, list)
	query := openapi.NewSearchRequest()
	query.Embedding, query.Filter = embedding, map[string]any{"lang": "en"}
	found := want[*openapi.SearchResult]("search")(
		api.DocumentsAPI.SearchDocuments(ctx).SearchRequest(*query).Execute())
	check("found", found.Results[0].Document.Id == document.Id, found)
}
