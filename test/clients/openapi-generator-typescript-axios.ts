// Drives the typescript-axios client of openapi-generator.

import { isAxiosError } from 'axios';
import * as api from './made';
import { base, check, content, email, embedding, filter, password, run } from './steps';

run(async () => {
  let accessToken = '';
  const config = new api.Configuration({ basePath: base, accessToken: async () => accessToken });
  const auth = new api.AuthApi(config);
  const documents = new api.DocumentsApi(config);
  const { data: user } = await auth.register({ email, password });
  check('register', user.email === email, user);
  const { data: tokens } = await auth.login({ username: email, password });
  check('login by JSON', tokens.token_type === 'bearer', tokens);
  const headers = { 'Content-Type': 'application/x-www-form-urlencoded' };
  const form = await auth.login({ username: email, password }, { headers });
  check('login by form', form.data.token_type === 'bearer', form.data);
  const { data: next } = await auth.refresh({ refresh_token: tokens.refresh_token });
  check('refresh', next.access_token !== tokens.access_token, next);
  accessToken = next.access_token;
  const { data: me } = await new api.UsersApi(config).me();
  check('me', me.id === user.id && me.full_name === null && !me.is_admin, me);
  const { data: made } = await documents.createDocument({ content, metadata: filter, embedding });
  check('create', made.content === content, made);
  const list = await documents.listDocuments(5, undefined, JSON.stringify(filter));
  check('list with filter', list.data[0].id === made.id, list.data);
  const found = await documents.searchDocuments({ embedding, filter });
  check('search', found.data.results[0].document.id === made.id, found.data);
  try {
    await auth.register({ email, password: 'password' });
    check('422', false);
  } catch (error) {
    if (!isAxiosError<api.Problem>(error)) throw error;
    const problem = error.response?.data;
    const loc = problem?.errors?.[0].loc.join('.');
    check('422', problem?.code === 'invalid_request' && loc === 'body.password', problem);
  }
});
